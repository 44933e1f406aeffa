"""Tailor's faces: the Gradio page and the terminal. Everything they show comes from core."""
