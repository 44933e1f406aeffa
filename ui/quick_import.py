"""Import Gradio in about half the time. Knows nothing else of it."""

import inspect
import sys
from typing import Any


def import_gradio() -> None:
    """Import Gradio without letting it write type stubs next to its own code.

    Gradio writes them at every start (create_or_modify_pyi in gradio/component_meta.py), which
    takes 1 to 2 s before the page is up. It skips a class whose source file is not found, so during
    the import none is.
    """
    getfile = inspect.getfile

    def find_none(thing: Any) -> str:
        if sys._getframe(1).f_code.co_name == "create_or_modify_pyi":
            raise OSError("no type stubs are wanted")
        return getfile(thing)

    inspect.getfile = find_none  # type: ignore[assignment]
    try:
        import gradio  # noqa: F401
    finally:
        inspect.getfile = getfile
