"""Ollama: the Modelfile that it reads, its template, and its own program if it is here."""

from core.after_training.export.ollama.program import (
    add_to_ollama,
    find_ollama,
    name_in_ollama,
)

__all__ = ["add_to_ollama", "find_ollama", "modelfile", "name_in_ollama", "template"]
