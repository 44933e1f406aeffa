"""Rows and tokens: JSONL files to TRL's columns, and to what the model reads. Needs no torch."""

# fmt: off
__all__ = [
    "answers", "chat", "encoders", "hub", "lost", "model_rows", "plain_text", "preferences",
    "prompts", "refusals", "rows", "tokenized", "tokenizer", "tokens",
]
# fmt: on
