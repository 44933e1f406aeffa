"""Imports Gradio in about half of its time. Knows nothing else of it."""

import inspect
import sys
from typing import Any


def import_gradio() -> None:
    """Imports Gradio without letting it write interface files for type checkers beside its own code.

    It does so at every start (gradio/component_meta.py, create_or_modify_pyi), which takes 1 to 2 s in which nobody
    sees a page yet. It leaves out a class that stands in no file, so while it is imported, none does.
    """
    file_of = inspect.getfile

    def no_file_of(thing: Any) -> str:
        if sys._getframe(1).f_code.co_name == "create_or_modify_pyi":
            raise OSError("no interface file is wanted")
        return file_of(thing)

    inspect.getfile = no_file_of  # type: ignore[assignment]
    try:
        import gradio  # noqa: F401
    finally:
        inspect.getfile = file_of
