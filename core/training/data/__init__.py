"""Rows and tokens: JSONL files to TRL's columns, and to what the model reads. Needs no torch."""

__all__ = ["preferences", "prompts", "rows", "tokenizer", "tokens"]
