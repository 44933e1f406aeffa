"""Files of one form, written as one file of JSON lines. The child's side of `take_in`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from core.dataset.intake.tables import csv_lines
from core.dataset.rewrite.files import reading, writing
from core.dataset.rewrite.mapping import map_columns

BYTES_BETWEEN_REPORTS = 2**20


@dataclass(frozen=True)
class Sources:
    """What is to be written, and how it is to be read."""

    paths: Sequence[Path]
    form: str
    """csv, or json for JSON lines and JSON arrays."""
    delimiter: str = ""
    """Of a CSV file; empty is guessed."""
    label: str = ""
    """The column of a CSV file that holds true or false."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Column of ours -> column of theirs; none keeps every column."""


def write_json_lines(
    sources: Sources, target: Path, on_bytes: Callable[[int], None]
) -> tuple[int, tuple[str, ...]]:
    """(rows written, what was done to their columns). Raises DatasetError, OSError."""
    whole = target.with_suffix(".whole") if sources.columns else target
    rows = bytes_before = told = 0
    with writing(whole) as out:
        for path in sources.paths:
            for num_bytes, line in _lines(path, sources):
                out.write(line + b"\n")
                rows += bool(line.strip())
                if bytes_before + num_bytes >= told + BYTES_BETWEEN_REPORTS:
                    told = bytes_before + num_bytes
                    on_bytes(told)
            bytes_before += path.stat().st_size
    if not sources.columns:
        return rows, ()
    written = map_columns(whole, target, sources.columns)
    whole.unlink()
    return written.rows, written.actions


def _lines(path: Path, sources: Sources) -> Iterator[tuple[int, bytes]]:
    """(about how many bytes are read, a line)."""
    if sources.form == "csv":
        yield from csv_lines(path, sources.delimiter, sources.label)
        return
    num_bytes = 0
    with reading(path, ("encoding", "byte_order_mark", "array")) as lines:
        for _number, line in lines:
            num_bytes += len(line) + 1
            yield num_bytes, line
