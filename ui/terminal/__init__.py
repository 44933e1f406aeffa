"""The command line. Never imports Gradio."""
