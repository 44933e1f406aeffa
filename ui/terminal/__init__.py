"""Command line. Never imports Gradio."""

__all__ = ["commands", "usage"]
