"""The edge agent: drafts tokens, streams what the server verified."""
