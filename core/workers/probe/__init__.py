"""Compute something on a card, to learn whether it works."""
