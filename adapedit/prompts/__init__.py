"""Prompts as words and tokens: which word of one stands where a word of the other stood."""
