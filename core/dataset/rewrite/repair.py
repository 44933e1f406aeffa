"""Changes to a dataset that a person asked for. Each writes a new file and says what it did; none touches the old one.

Texts stay as they are, byte for byte: a repair removes what stands between rows and around values, never inside them.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from core.dataset.check.check import examine
from core.dataset.check.json_array import is_array
from core.dataset.check.lines import parse
from core.dataset.check.scanner import Wish
from core.dataset.check.signatures import HEAD_BYTES
from core.dataset.report import counted
from core.dataset.rewrite.files import Written, reading, writing
from core.dataset.rewrite.objects import Joiner, rows_of, without_commas

LISTED_LINES = 10

REPAIRS: Mapping[str, str] = MappingProxyType(
    {
        "encoding": "write UTF-16 and UTF-32 as UTF-8",
        "byte_order_mark": "remove the byte order mark",
        "array": "put each element of the array on a line of its own",
        "line_ends": "end lines with LF instead of CR LF or CR",
        "objects": "put each object on a line of its own",
        "trailing_commas": "remove commas before a closing bracket",
    }
)
"""Repair -> what it does."""

SENTENCES: Mapping[str, tuple[str, str]] = {
    "encoding": ("Written as UTF-8.", ""),
    "byte_order_mark": ("The byte order mark was removed.", ""),
    "array": ("The array became {}.", "line"),
    "line_ends": ("Removed {} from the ends of lines.", "carriage return"),
    "objects": ("Joined or divided {}, so that each holds one object.", "line"),
    "trailing_commas": ("Removed commas before closing brackets in {}.", "row"),
}
"""Repair -> what was done, and to what."""


def repair(path: Path, target: Path, repairs: Collection[str] = REPAIRS.keys()) -> Written:
    """Writes a file again with these repairs where they apply.

    Raises DatasetError if it is not text or not in the encoding it seems to be in, OSError for a disk that will not.
    """
    counts, rows = dict.fromkeys(REPAIRS, 0), 0
    with reading(path, repairs, counts) as source, writing(target) as out:
        lines: Iterator[bytes] = (line for _number, line in source)
        for step in (name for name in STEPS if name in repairs):
            lines = STEPS[step](lines, counts)
        for line in lines:
            out.write(line + b"\n")
            rows += bool(line.strip())
    done = ((*SENTENCES[name], counts[name]) for name in REPAIRS if counts[name])
    return Written(
        target,
        rows,
        tuple(sentence.format(counted(number, noun)) for sentence, noun, number in done),
    )


def write_lines(path: Path, target: Path) -> Written:
    """Writes a file as the trainer reads it: JSON lines as they are, an array as one line for each element."""
    return repair(path, target, ("array",))


def as_lines(path: Path, beside: Path) -> Path:
    """The file itself, or, if it is one JSON array, its elements as lines in another. Raises DatasetError, OSError."""
    with path.open("rb") as file:
        has_lines = not is_array(file.read(HEAD_BYTES))
    return path if has_lines else write_lines(path, beside).path


def drop_rows(path: Path, target: Path, lines: Iterable[int]) -> Written:
    """Writes a file again without these lines (1-based). Raises DatasetError, OSError."""
    dropped, kept = sorted(set(lines)), 0
    waiting = iter(dropped)
    next_dropped = next(waiting, 0)
    with reading(path) as source, writing(target) as out:
        for number, line in source:
            if number == next_dropped:
                next_dropped = next(waiting, 0)
            else:
                out.write(line + b"\n")
                kept += bool(line.strip())
    return Written(target, kept, (_dropped_sentence(dropped),) if dropped else ())


def drop_bad_rows(path: Path, target: Path, wish: Wish | None = None) -> Written:
    """Writes a file again without the rows that have problems."""
    return drop_rows(path, target, examine(path, wish or Wish()).bad_lines)


def drop_duplicates(path: Path, target: Path, wish: Wish | None = None) -> Written:
    """Writes a file again without the rows that repeat an earlier one."""
    return drop_rows(path, target, examine(path, wish or Wish()).duplicate_lines)


def _without_returns(lines: Iterable[bytes], counts: dict[str, int]) -> Iterator[bytes]:
    """Lines without the CR at their end, and the lines that lone CRs separate."""
    for line in lines:
        counts["line_ends"] += line.count(b"\r")
        yield from line.removesuffix(b"\r").split(b"\r")


def _one_object_a_line(lines: Iterable[bytes], counts: dict[str, int]) -> Iterator[bytes]:
    joiner = Joiner()
    for line in joiner.lines(lines):
        rows = rows_of(line) if parse(line)[1] else (line,)
        counts["objects"] += rows != (line,)
        yield from rows
    counts["objects"] += joiner.num_joined


def _without_commas(lines: Iterable[bytes], counts: dict[str, int]) -> Iterator[bytes]:
    for line in lines:
        fixed = without_commas(line)
        counts["trailing_commas"] += fixed != line
        yield fixed


STEPS = MappingProxyType(
    {
        "line_ends": _without_returns,
        "objects": _one_object_a_line,
        "trailing_commas": _without_commas,
    }
)
"""The repairs that concern lines, in the order in which they are made."""


def _dropped_sentence(lines: list[int]) -> str:
    shown = ", ".join(f"{line:,}" for line in lines[:LISTED_LINES])
    more = f" and {len(lines) - LISTED_LINES:,} more" if len(lines) > LISTED_LINES else ""
    return f"{counted(len(lines), 'row')} left out: line{'s' * (len(lines) != 1)} {shown}{more}."
