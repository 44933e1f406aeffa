"""Check what a browser sends before Gradio reads it. Answers in words. Knows no event.

Gradio checks it too, but answers with an empty error. It would also fetch a file from an address.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

NOT_UPLOADED = "The request names a file that was not uploaded here. Upload it again."
NOT_READABLE = "The page sent something that Tailor cannot read. Reload the page."


class CheckedBlocks(gr.Blocks):
    """Page that says why it refuses what was sent."""

    async def preprocess_data(
        self, block_fn: Any, inputs: list[Any], *arguments: Any, **options: Any
    ) -> Any:
        """Return the values of the inputs. Raises gr.Error, which the page shows."""
        try:
            _require_uploaded(inputs)
            return await super().preprocess_data(block_fn, inputs, *arguments, **options)
        except gr.Error:
            raise
        except Exception as error:  # what is wrong was sent
            raise gr.Error(NOT_READABLE) from error


def _require_uploaded(inputs: list[Any]) -> None:
    """Raise gr.Error if the inputs name a file that is no upload."""
    folder = Path(get_upload_folder()).resolve()
    if not all(_is_in(folder, path) for path in _paths_in(inputs)):
        raise gr.Error(NOT_UPLOADED, print_exception=False)


def _paths_in(sent: object) -> Iterator[object]:
    """Yield the paths of all files that some JSON names."""
    if isinstance(sent, dict):
        if "path" in sent:
            yield sent["path"]
        sent = list(sent.values())
    if isinstance(sent, list):
        for each in sent:
            yield from _paths_in(each)


def _is_in(folder: Path, path: object) -> bool:
    """Return True for the path of a file in a folder."""
    try:
        found = Path(str(path)).resolve()
        return found.is_relative_to(folder) and found.is_file()
    except (OSError, ValueError, RuntimeError):  # a null byte, a circle of links
        return False
