"""The recipe of the bundled models: corpus, tokenizer, target, drafts, tuning, cards."""
