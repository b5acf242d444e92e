"""Verification rules as classes: the built-in ones draw as they always did, one's own works on both sides, lossless or not."""
