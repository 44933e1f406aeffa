"""Weights as files hold them: names and sizes, published forms, adapters. Standard library only."""

__all__ = ["adapters", "files", "forms", "parameters"]
