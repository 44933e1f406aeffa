"""From a line of a file to a row in TRL's columns, as the training program reads it; and which
rows are held out for evaluation.

Standard library only. Opens no file and counts no tokens.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from .conversations import MessageReading, conversation_faults, is_canonical
from .messages import ConversationPart, Fault, Message, any_of, json_type
from .row_columns import Row, holds_something, parse_text
from .row_formats import (
    ROW_FORMATS,
    RowLayout,
    TextFormat,
    find_row_layout,
    format_fault,
    row_layout_of,
    stages_for,
)
from .row_parts import RowParts
from .stages import STAGES
from .tool_calls import Tool, are_plain_tools, tool_names

RIGHT_ANSWERS: tuple[str, ...] = (
    "ground_truth",
    "answer",
    "solution",
    "target",
    "reference_answer",
    "expected_answer",
    "correct_answer",
    "final_answer",
    "ideal",
    "label",
)
"""Columns, or keys of the objects in HOLDERS, that may hold the right answer to a prompt, for
reward functions; the likelier first."""
# fmt: off
HOLDERS = (
    "reward_model", "reward_spec", "reward", "verification_info", "extra_info", "metadata", "item",
)
# fmt: on
"""Columns that may hold an object with the right answer, or one as JSON text, as verl writes it."""
ANSWER_KEYS = frozenset((*RIGHT_ANSWERS, "value", "text", "content", "answers"))
"""Key of an object of one value, which is the right answer."""
OF_SOME_ROWS = ("tools", "answer", "trained_messages")
"""Columns in TRL's names that some rows of a file may leave empty."""
FEWEST_ROWS_TO_SPLIT = 20
"""Of fewer rows none is held out: one row would say nothing."""
LARGEST_SHARE = 0.5
"""Most that is held out where rows repeat so often that no smaller share can be."""


class BadRow(ValueError):
    """Raised for a row that cannot be trained on; the message says what is wrong and what to do."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Row as a stage reads it, and what was found on the way."""

    row: Row = field(default_factory=dict)
    """In TRL's columns but that of tools; meaningless if there are faults."""
    tools: Sequence[Tool] | None = None
    """Tools that the row offers; None for rows that cannot offer any."""
    faults: Sequence[Fault] = ()
    unread: Mapping[str, bool] = field(default_factory=dict)
    """Place inside a column that is read, but is not read itself -> whether the model would learn
    something else were it read."""
    answer_column: str = ""
    """Column that holds the right answer, for a stage whose model answers."""

    @property
    def trl_row(self) -> Row:
        """Row in TRL's columns, of which the tools are JSON text."""
        if self.tools is None:
            return self.row
        return {**self.row, "tools": json.dumps(self.tools) if self.tools else None}


def read_row(line: bytes, stage: str = "sft", first: Row | None = None) -> Row:
    """Return a line of JSON as a row in TRL's columns. Raises BadRow.

    `first` is the first row of the file, whose columns all others must have.
    """
    row = _parse_object(line)
    layout = find_row_layout(row, stage)
    fault = format_fault(row, layout.row_format if layout else None, stage)
    if fault or layout is None:
        raise BadRow(str(fault))
    reading = read_columns(row, layout, stage)
    if reading.faults:
        raise BadRow(str(reading.faults[0]))
    found = reading.trl_row
    if first and columns_of(found) != columns_of(first):
        raise BadRow("is of another format than the first row; write all rows in the same way")
    return found


def content_of(line: bytes, stage: str) -> Row | bytes:
    """Return a line as `read_row` does; a line that is no row of its format as it is."""
    try:
        return read_row(line, stage)
    except (BadRow, ValueError, RecursionError):
        return line


def read_columns(row: Row, layout: RowLayout, stage: str) -> Reading:
    """Read a row that has the columns of a layout, for the trainer of a stage."""
    parts = RowParts(row, layout, stage)
    found: Row = {}
    if not parts.faults:
        found = layout.row_format.convert(parts)
    faults, unread = _as_other_type(parts.faults, row, layout), parts.unread
    if not STAGES[stage].generates:
        tools = parts.tools if "tools" in layout.row_format.optional else None
        return Reading(found, tools, faults, unread)
    if parts.tools:
        message = f"{stage} offers no tools while it generates answers"
        name = parts.beside("tools")[1] or "tools"
        faults = [*faults, Fault(name, "tools_unused", message, "leave them out")]
    if faults:
        return Reading({}, None, faults, unread)
    answer, column = _right_answer(found, parts)
    return Reading({"prompt": found["prompt"], "answer": answer}, None, (), unread, column)


def _as_other_type(faults: list[Fault], row: Row, layout: RowLayout) -> list[Fault]:
    """Return one fault that says so if a conversation without its answer is a preference."""
    if not faults or layout.row_format.dataset_type != "language modeling":
        return faults
    if {fault.code for fault in faults} - {"no_answer", "no_last_answer"}:
        return faults
    for row_format in ROW_FORMATS:
        is_preference = row_format.dataset_type == "preference"
        if is_preference and row_layout_of(row_format, row):
            fix = f"choose {any_of(stages_for('preference'))}"
            return [Fault("row", "wrong_type", "is preference data", fix)]
    return faults


def columns_of(row: Row) -> dict[str, type]:
    """Return what all rows of a training share: the columns in TRL's names, with their types."""
    return {name: type(value) for name, value in row.items() if name not in OF_SOME_ROWS}


def is_sound_conversation(turns: list[Any], part: ConversationPart, tools: Any) -> bool:
    """Return whether turns are messages as they are trained on, in a row that offers these tools.

    Both are as they are written in the row. False if they need a closer look.
    """
    if not is_canonical(turns) or (tools and not are_plain_tools(tools)):
        return False
    offered = tool_names(tools or [])
    return not conversation_faults(MessageReading("", turns), part, offered)


def text_format(found: Row, layout: RowLayout) -> TextFormat:
    """Return whether a row that was read holds messages or plain text.

    Questions and answers that always become messages are text, as they are written.
    """
    if layout.row_format.is_always_chat:
        return "standard"
    for value in found.values():
        if isinstance(value, list):
            return "conversational"
    return "standard"


def unpaired_rows(row: Row) -> list[Row]:
    """Return the two answers of a preference as a wanted and an unwanted one, for KTO."""
    rest = {name: value for name, value in row.items() if name not in ("chosen", "rejected")}
    return [
        rest | {"completion": row["chosen"], "label": True},
        rest | {"completion": row["rejected"], "label": False},
    ]


def _parse_object(line: bytes) -> Row:
    try:
        fields = json.loads(line)
    except UnicodeDecodeError:
        raise BadRow("not UTF-8") from None
    except json.JSONDecodeError as error:
        raise BadRow(f"not JSON at column {error.colno}: {error.msg}") from None
    if not isinstance(fields, dict):
        raise BadRow(f"a row must be an object, not {json_type(fields)}")
    return fields


def _right_answer(found: Row, parts: RowParts) -> tuple[str | None, str]:
    """Return (the right answer of a row as text, the column that holds it); (None, "") if none.

    A completion is the right answer unless a likelier column names one: `ground_truth` comes before
    a completion in `answer`. What stands beside the right answer is named as not read.
    """
    row, column = parts.row, parts.names.columns.get("completion", "")
    place = column or f"{parts.names.columns.get('messages')}[-1]"
    likelier = RIGHT_ANSWERS
    if column in RIGHT_ANSWERS:
        likelier = RIGHT_ANSWERS[: RIGHT_ANSWERS.index(column)]
    elif "completion" in found:
        likelier = RIGHT_ANSWERS[:-1]  # a label beside an answer is a verdict on it
    for name in likelier:
        if name not in parts.names.columns.values() and _may_be_answer(row.get(name)):
            if "completion" in found:
                parts.leave_out(place)
            return _as_text(row[name]), name
    for holder in HOLDERS:
        inside = row.get(holder)
        if isinstance(inside, str):
            inside = parse_text(inside)
        if not isinstance(inside, dict):
            continue
        held = [key for key, value in inside.items() if holds_something(value)]
        for name in (name for name in likelier if _may_be_answer(inside.get(name))):
            for key in held:
                if key != name:
                    parts.leave_out(f"{holder}.{key}")
            if "completion" in found:
                parts.leave_out(place)
            return _as_text(inside[name]), f"{holder}.{name}"
    answer = found.get("completion")
    if not isinstance(answer, list):
        return answer, column
    last = answer[-1]
    _leave_out_mask(parts, last)
    if answer != [{"role": "assistant", "content": last.get("content")}]:
        parts.leave_out(place)
    return str(last.get("content") or ""), place


def _leave_out_mask(parts: RowParts, answer: Message) -> None:
    """Name the mask of an answer, which is a right one all the same, as not read."""
    for each in parts.conversations:
        if each.mask_key and each.is_masked[-1] and each.messages[-1] == answer:
            parts.leave_out(f"{each.column}[].{each.mask_key}", matters=True)


def _may_be_answer(value: Any) -> bool:
    """Return whether a value can be a right answer. True or false is a verdict on one."""
    return holds_something(value) and not isinstance(value, bool)


def _as_text(answer: Any) -> str:
    """Return a right answer as text; that inside a list of one, or inside an object of one.

    Several right answers are a list in JSON.
    """
    if isinstance(answer, list) and len(answer) == 1:
        return _as_text(answer[0])
    if isinstance(answer, dict) and len(answer) == 1 and next(iter(answer)) in ANSWER_KEYS:
        return _as_text(next(iter(answer.values())))
    return answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)


def content_key(row: Row | bytes) -> int:
    """Return 64 bits of a hash of what a row says, in any order of its keys.

    Two different rows have the same key with a probability of 2^-64. A line that is no row is
    known by its bytes.
    """
    if isinstance(row, dict):
        row = json.dumps(row, sort_keys=True).encode()
    return int.from_bytes(blake2b(row, digest_size=8).digest())


def held_out_rows(keys: Sequence[int], fraction: float, seed: int) -> set[int]:
    """Return the indices of the rows to hold out, given the key of each row.

    Rows are chosen by their content and the seed, not by their place in the file. Rows with the
    same key are all chosen or none, so there may be fewer than the fraction, or none at all.
    """
    if not fraction or len(keys) < FEWEST_ROWS_TO_SPLIT:
        return set()
    num_wanted = max(1, round(fraction * len(keys)))
    sizes = Counter(keys)
    chosen: set[int] = set()
    for key in sorted(sizes, key=lambda key: _rank(key, seed)):
        if sizes[key] <= num_wanted:
            chosen.add(key)
            num_wanted -= sizes[key]
        if num_wanted == 0:
            break
    if not chosen:
        chosen = _smallest(sizes, seed)
    return {index for index, key in enumerate(keys) if key in chosen}


def leak_sentence(num_leaked: int, num_eval_rows: int, lines: str = "") -> str:
    """Return a sentence about evaluation rows that are trained on; "" if none are.

    `lines` names their lines in the evaluation file, such as "line 3".
    """
    if not num_leaked:
        return ""
    if num_leaked == num_eval_rows:
        return (
            "Every row of the evaluation data is trained on too, so eval_loss would not say how "
            "new rows are answered. Give other rows, or leave eval_dataset empty to hold out a "
            "part of the training data."
        )
    rows = f"{num_leaked:,} row{'s' * (num_leaked != 1)}" + (f" ({lines})" if lines else "")
    return (
        f"The evaluation data has {rows} that the training data has too, so eval_loss will look "
        "better than it is. Drop them from one of the two."
    )


def _rank(key: int, seed: int) -> bytes:
    """Return a random number for a key, the same for the same seed."""
    return blake2b(key.to_bytes(8), key=seed.to_bytes(8), digest_size=8).digest()


def _smallest(sizes: Counter[int], seed: int) -> set[int]:
    """Return the key of the fewest rows, if enough others are left to train on; or nothing."""
    key = min(sizes, key=lambda key: (sizes[key], _rank(key, seed)))
    return {key} if sizes[key] <= LARGEST_SHARE * sizes.total() else set()
