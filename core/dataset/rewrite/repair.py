"""Changes to a dataset that a person asked for. Each writes a new file and says what it did.

Texts stay as they are, byte for byte: a repair removes what stands between rows and around values,
never inside them.
"""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from core.dataset.check import examine
from core.dataset.files import Written, writing
from core.dataset.reading.json_faults import BYTE_ORDER_MARK
from core.dataset.reading.lines import parse_line
from core.dataset.reading.objects import (
    LineJoiner,
    one_object_a_line,
    without_last_commas,
)
from core.dataset.reading.text_lines import layout_of, reading
from core.dataset.report import counted, named_lines
from core.job import DatasetError, Problem
from core.training.contract.row_formats import ROW_FORMATS_BY_ID

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


def map_columns(
    path: Path, target: Path, mapping: Mapping[str, str], row_format: str = ""
) -> Written:
    """Write the mapped columns of each row under our names, their values unchanged.

    `mapping` goes from our column to the file's; all others are left out. `row_format` is an id in
    ROW_FORMATS whose columns must all be mapped. Raises DatasetError if one is not, OSError.
    """
    needed = ROW_FORMATS_BY_ID[row_format].columns if row_format else ()
    missing = [column for column in needed if column not in mapping]
    if missing:
        message = f"{row_format} rows need {' and '.join(missing)}"
        fix = f"say which column of the file is the {missing[0]}"
        raise DatasetError(Problem("file", message, fix))
    rows = num_bad = 0
    with reading(path) as source, writing(target) as out:
        for _number, line in source:
            row, fault = parse_line(line)
            if row is not None:
                rows += 1
                # Parsed again with `json`, which keeps large numbers as they are.
                whole = json.loads(line.removeprefix(BYTE_ORDER_MARK))
                mapped = {ours: whole[name] for ours, name in mapping.items() if name in whole}
                out.write(json.dumps(mapped, ensure_ascii=False).encode() + b"\n")
            elif fault:
                num_bad += 1
    names = ", ".join(f"{theirs} became {ours}" for ours, theirs in mapping.items())
    actions = [f"Columns: {names}; all others were left out."]
    if num_bad:
        actions.append(f"{counted(num_bad, 'line')} without a row left out.")
    return Written(target, rows, tuple(actions))


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
