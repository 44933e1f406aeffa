"""Files of one form, written as one file of JSON lines. Runs in the child of `import_dataset`."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from core.dataset.files import writing
from core.dataset.intake.tables import csv_lines
from core.dataset.reading.text_lines import reading

Form = Literal["csv", "json", "parquet", "text"]
"""Form of source files; json stands for JSON lines and for JSON arrays."""


@dataclass(frozen=True)
class Sources:
    """Files to import, and how to read them."""

    paths: Sequence[Path]
    form: Form
    delimiter: str = ""
    """Of CSV files; empty is guessed."""


def write_json_lines(
    sources: Sources, target: Path, on_bytes: Callable[[int], None] = lambda _num_bytes: None
) -> int:
    """Write files as JSON lines and return the number of rows. Raises DatasetError, OSError.

    `on_bytes` is called with the number of bytes read so far.
    """
    rows = bytes_before = 0
    with writing(target) as out:
        for path in sources.paths:
            for num_bytes, line in _lines(path, sources):
                out.write(line + b"\n")
                rows += bool(line.strip())
                on_bytes(bytes_before + num_bytes)
            bytes_before += path.stat().st_size
    return rows


def _lines(path: Path, sources: Sources) -> Iterator[tuple[int, bytes]]:
    """Yield (about how many bytes are read, a line)."""
    if sources.form == "csv":
        yield from csv_lines(path, sources.delimiter)
        return
    num_bytes = 0
    with reading(path, ("encoding", "byte_order_mark")) as lines:
        for _number, line in lines:
            num_bytes += len(line) + 1
            yield num_bytes, line
