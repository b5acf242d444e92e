"""The verification server: one target model for everybody's drafts."""
