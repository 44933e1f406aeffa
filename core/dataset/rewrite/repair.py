"""Changes to a dataset that a person asked for. Each writes a new file and says what it did.

Texts stay as they are, byte for byte: a repair removes what stands between rows and around values,
never inside them.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from core.dataset.check import examine
from core.dataset.files import Written, writing
from core.dataset.reading.lines import parse_line
from core.dataset.reading.objects import (
    LineJoiner,
    one_object_a_line,
    without_last_commas,
)
from core.dataset.reading.plain_text import SPLITS, Split
from core.dataset.reading.text_lines import layout_of, reading
from core.dataset.report import counted, named_lines
from core.job import DatasetError, Problem
from core.training.contract.row_columns import truth_of
from core.training.contract.row_formats import LABEL

REPAIRS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "encoding": ("Written as UTF-8.", ""),
        "byte_order_mark": ("The byte order mark was removed.", ""),
        "array": ("The array became {}.", "line"),
        "rows_inside": ("Took {} out of the object around them.", "row"),
        "bare_values": ("Wrote {} that were texts or lists of messages as objects.", "row"),
        "text": ("Made {} of the plain text.", "row"),
        "line_ends": ("Removed {} from the ends of lines.", "carriage return"),
        "objects": ("Wrote {} on one line each.", "object"),
        "trailing_commas": ("Removed commas before closing brackets in {}.", "row"),
    }
)
"""Repair -> (what was done, to what)."""


def repair(path: Path, target: Path, repairs: Collection[str] = REPAIRS.keys()) -> Written:
    """Write a file again with these repairs where they apply.

    Raises DatasetError if it is not text or not in the encoding that it seems to be in, OSError.
    """
    counts, rows = dict.fromkeys(REPAIRS, 0), 0
    with reading(path, repairs, counts) as source, writing(target) as out:
        lines: Iterator[bytes] = (line for _number, line in source)
        for name, repair_lines in LINE_REPAIRS.items():
            if name in repairs:
                lines = repair_lines(lines, counts)
        for line in lines:
            out.write(line + b"\n")
            rows += bool(line.strip())
    actions = []
    for name, (sentence, noun) in REPAIRS.items():
        if counts[name]:
            actions.append(sentence.format(counted(counts[name], noun)))
    return Written(target, rows, tuple(actions))


def write_lines(path: Path, target: Path) -> Written:
    """Write the rows of a file as the training program reads them: one a line, else unchanged."""
    return repair(path, target, ())


def split_text(path: Path, target: Path, split: Split) -> Written:
    """Write a plain text as rows, split in this way. Raises DatasetError, OSError."""
    if layout_of(path).kind != "text":
        problem, fix = f"{path.name} is no plain text", "leave split-text out, or give a .txt file"
        raise DatasetError(Problem("split-text", problem, fix))
    rows = 0
    with reading(path, ("encoding",), split=split) as source, writing(target) as out:
        for _number, line in source:
            out.write(line + b"\n")
            rows += 1
    action = f"The text is {SPLITS[split]}, which gives {counted(rows, 'row')}."
    return Written(target, rows, (action,))


def as_lines(path: Path, target: Path) -> Path:
    """Return a file with one row a line: the file itself, or `target` if it has another layout.

    In `target` each row is on the line that it has in reports on the file. Raises DatasetError,
    OSError.
    """
    if layout_of(path).is_usual:
        return path
    with reading(path) as source, writing(target) as out:
        next_line = 1
        for number, line in source:
            out.write(b"\n" * (number - next_line) + line + b"\n")
            next_line = max(number, next_line) + 1
    return target


def drop_rows(path: Path, target: Path, lines: Iterable[int]) -> Written:
    """Write a file again without these lines (1-based). Raises DatasetError, OSError."""
    dropped, rows = sorted(set(lines)), 0
    waiting = iter(dropped)
    next_dropped = next(waiting, 0)
    with reading(path) as source, writing(target) as out:
        for number, line in source:
            if number == next_dropped:
                next_dropped = next(waiting, 0)
            else:
                out.write(line + b"\n")
                rows += bool(line.strip())
    if not dropped:
        return Written(target, rows, ())
    number = len(dropped)
    action = f"{counted(number, 'row')} left out: {named_lines(dropped, number)}."
    return Written(target, rows, (action,))


def drop_bad_rows(path: Path, target: Path, stage: str = "sft") -> Written:
    """Write a file again without the rows that have problems. Raises DatasetError, OSError."""
    return drop_rows(path, target, examine(path, stage).bad_lines)


def keep_wanted(path: Path, target: Path) -> Written:
    """Write a file again without the rows whose label says that their answer is not wanted.

    Raises DatasetError, OSError.
    """
    unwanted = []
    with reading(path) as source:
        for number, line in source:
            row, _fault = parse_line(line)
            if row and any(truth_of(row.get(name)) is False for name in LABEL):
                unwanted.append(number)
    return drop_rows(path, target, unwanted)


def _without_returns(lines: Iterable[bytes], counts: dict[str, int]) -> Iterator[bytes]:
    """Yield lines without the CR at their end, and the lines that lone CRs separate."""
    for line in lines:
        counts["line_ends"] += line.count(b"\r")
        yield from line.removesuffix(b"\r").split(b"\r")


def _one_object_a_line(lines: Iterable[bytes], counts: dict[str, int]) -> Iterator[bytes]:
    joiner = LineJoiner()
    for _number, line in one_object_a_line(enumerate(lines, start=1), joiner):
        yield line or b""
    counts["objects"] += joiner.num_objects


def _without_commas(lines: Iterable[bytes], counts: dict[str, int]) -> Iterator[bytes]:
    for line in lines:
        fixed = without_last_commas(line)
        counts["trailing_commas"] += fixed != line
        yield fixed


LINE_REPAIRS: Mapping[str, Callable[[Iterable[bytes], dict[str, int]], Iterator[bytes]]] = (
    MappingProxyType(
        {
            "line_ends": _without_returns,
            "objects": _one_object_a_line,
            "trailing_commas": _without_commas,
        }
    )
)
"""Repairs of single lines, in the order in which they are made."""
