"""Checks of a model: suites of tests, and what an answer must be to pass. Standard library only."""

__all__ = ["patterns", "scoring", "suite", "suite_files"]
