"""Row formats of whole files: detected, or suggested by the names and values of the first rows.

A mapping goes from our column to the file's: {"prompt": "Frage", "completion": "Antwort"}.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from core.training.contract.messages import (
    ANSWER_KEYS,
    QUESTION_KEYS,
    ROLE_KEYS,
    Fault,
    json_type,
)
from core.training.contract.row_columns import Row, holds_something, parse_text
from core.training.contract.row_formats import (
    RowFormat,
    RowLayout,
    accepts,
    find_row_layout,
    row_layout_of,
    unknown_columns_fault,
)
from core.training.contract.stages import STAGES

USUAL_STAGES: Mapping[str, str] = {
    dataset_type: stage.id for stage in STAGES.values() for dataset_type in stage.usual_for
}
"""Dataset type -> the stage that people most likely want it for."""
TEXT_STAGE = next(stage.id for stage in STAGES.values() if stage.learns_every_token)
"""Stage for plain text."""
TURN_NAMES = frozenset((*ROLE_KEYS, *QUESTION_KEYS, *ANSWER_KEYS, "messages"))
"""Keys of which a turn of a conversation has at least one."""
MAYBE_TEXT = ("conversations", "conversation", "contents")
"""Columns of conversations that other files use for texts."""


def detect_format(rows: Sequence[Row], stage: str, *, is_all: bool) -> tuple[RowFormat | None, str]:
    """Return the format of most rows of a sample, and the evidence in words.

    `is_all` says that the file has no further rows.
    """
    layouts = _each_once(rows, lambda row: find_row_layout(row, stage))
    votes = Counter(layout.row_format if layout else None for layout in layouts)
    for row_format in list(votes):
        if row_format and not _is_likely(rows, layouts, row_format, stage):
            votes[None] += votes.pop(row_format)
    if not votes:
        return None, ""
    # A known format wins over no format, however few rows have it.
    row_format, num_rows = max(votes.items(), key=lambda vote: (vote[0] is not None, vote[1]))
    total = len(rows)
    sample = f"{total:,} rows" if is_all else f"the first {total:,} rows"
    if row_format is None:
        return None, f"none of {sample} has the columns of a known format"
    share = f"{num_rows:,} of {sample}"
    if num_rows == total:
        share = f"all {sample}" if is_all else f"all of {sample}"
    if is_all and num_rows == total == 1:
        share = "the only row"
    return row_format, f"{' and '.join(usual_columns(layouts, row_format))} in {share}"


def _each_once(
    rows: Sequence[Row], layout_of: Callable[[Row], RowLayout | None]
) -> list[RowLayout | None]:
    """Return the layout of each row, found once for all rows with the same columns."""
    known: dict[tuple[str, ...], RowLayout | None] = {}
    layouts = []
    for row in rows:
        columns = tuple(row)
        if columns not in known:
            known[columns] = layout_of(row)
        layouts.append(known[columns])
    return layouts


def usual_columns(layouts: Iterable[RowLayout | None], row_format: RowFormat) -> tuple[str, ...]:
    """Return the columns that hold the parts of a format in the first row of it."""
    for layout in layouts:
        if layout and layout.row_format is row_format:
            return tuple(layout.columns.values())
    return row_format.columns


def columns_beside(rows: Sequence[Row], row_format: RowFormat) -> tuple[str, ...]:
    """Return the further columns that are read of rows of a format, if they hold anything."""
    found: dict[str, None] = {}
    layouts = _each_once(rows, lambda row: row_layout_of(row_format, row))
    for row, layout in zip(rows, layouts, strict=True):
        for names in layout.beside.values() if layout else ():
            found |= dict.fromkeys(name for name in names if holds_something(row[name]))
    return tuple(found)


def unknown_format_fault(names: Sequence[str], rows: Sequence[Row], stage: str) -> Fault:
    """Return why rows with these columns are of no known format, as far as their values tell."""
    fault = unknown_columns_fault(names, stage)
    if fault.code != "unknown_columns":
        return fault
    for row in rows:
        for name, value in row.items():
            if name in names and isinstance(value, list | dict) and value:
                what = f"{name} is {json_type(value)}"
                wanted = "write one text or one list of messages in a column"
                return fault._replace(
                    message=f"{fault.message}; {what}", fix=f"{wanted}, or {fault.fix}"
                )
    return fault


def is_like_conversation(value: object) -> bool:
    """Return whether a value is written as messages, or as pairs of questions and answers."""
    if isinstance(value, str):
        value = parse_text(value)
    turns = [value] if isinstance(value, dict) else value
    return isinstance(turns, list) and bool(turns) and all(map(_is_like_turn, turns))


def _is_like_turn(value: object) -> bool:
    if isinstance(value, list):
        return len(value) == 2 and all(isinstance(each, str) for each in value)
    return isinstance(value, dict) and not TURN_NAMES.isdisjoint(value)


def _is_likely(
    rows: Sequence[Row], layouts: Sequence[RowLayout | None], row_format: RowFormat, stage: str
) -> bool:
    """Return whether the values of rows fit the format that their columns are named for."""
    pairs = zip(rows, layouts, strict=True)
    some = [(row, layout) for row, layout in pairs if layout and layout.row_format is row_format]
    for part in ("messages", "prompt"):
        names = {layout.columns.get(part) for _row, layout in some}
        if names <= set(MAYBE_TEXT) and not any(
            is_like_conversation(row[layout.columns[part]])
            for row, layout in some
            if part in layout.columns
        ):
            return False
    if row_format.dataset_type != "prompt-only" or accepts(stage, row_format):
        return True
    # One column of a kind is no kind: what stands beside a prompt may be its answer.
    is_object = any(isinstance(_first_value(row, layout), dict) for row, layout in some)
    return not is_object and not any(_has_answer_like(row, layout) for row, layout in some)


def _first_value(row: Row, layout: RowLayout) -> object:
    """Return what stands in the first column that is read. Rows may name it in different ways."""
    return row[next(iter(layout.columns.values()))]


def _has_answer_like(row: Row, layout: RowLayout) -> bool:
    """Return whether a row holds anything beside its prompt that may be an answer."""
    for name, value in row.items():
        may_be_answer = name not in layout.read_names and isinstance(value, str | list | dict)
        if may_be_answer and holds_something(value):
            return True
    return False
