"""First rows of a file, by which its row format is recognised. Judges no row."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from core.dataset.reading.json_array import JsonArray, is_array
from core.dataset.reading.lines import ByteSource, blocks_of_lines, parse_line
from core.dataset.reading.signatures import HEAD_BYTES
from core.training.contract.row_columns import Row

SAMPLE_ROWS = 1000
SAMPLE_BYTES = 16 * 2**20
"""No sample is looked for beyond these."""


def first_rows(path: Path) -> tuple[list[Row], bool]:
    """Return (the first rows that can be parsed, whether there are no others). Raises OSError."""
    with path.open("rb") as file:
        as_array = is_array(file.read(HEAD_BYTES))
        file.seek(0)
        source = ByteSource(file)
        rows = _parsed_rows(source, as_array)
        found = list(islice(rows, SAMPLE_ROWS))
        return found, next(rows, None) is None and source.is_at_end


def _parsed_rows(source: ByteSource, as_array: bool) -> Iterator[Row]:
    for block in JsonArray(source).blocks() if as_array else blocks_of_lines(source):
        for line in block.lines:
            row, _fault = parse_line(line)
            if row is not None:
                yield row
        if source.num_bytes > SAMPLE_BYTES:
            return
