"""Rows: read, split and turned into token ids. Never imports torch, so that the preview starts quickly."""
