"""Command line. Never imports Gradio."""

__all__ = ["commands", "interrupts", "usage"]
