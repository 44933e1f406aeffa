"""The schema pass: what a row's columns must hold, by name. Gives the faults of one row; knows nothing of lines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.dataset.check.turns import (
    ANSWER,
    PROMPT,
    WHOLE,
    Part,
    kind_of_value,
    message_faults,
    tools_fault,
    turn_faults,
)
from core.dataset.formats import DatasetType
from core.dataset.report import Fault, Format, Row


@dataclass(frozen=True)
class Column:
    """What a column of a name may hold, in whatever kind of row it stands."""

    holds_text: bool = True
    messages: Part | None = None
    """Set if it may hold messages."""
    may_be_empty: bool = False

    @property
    def wanted(self) -> str:
        lists = "a list of messages" if self.messages else ""
        return " or ".join(each for each in ("text" if self.holds_text else "", lists) if each)


COLUMNS: Mapping[str, Column] = {
    "messages": Column(holds_text=False, messages=WHOLE),
    "conversations": Column(holds_text=False, messages=WHOLE),
    "prompt": Column(messages=PROMPT, may_be_empty=True),
    "completion": Column(messages=ANSWER),
    "chosen": Column(messages=ANSWER),
    "rejected": Column(messages=ANSWER),
    "instruction": Column(),
    "output": Column(),
    "question": Column(),
    "answer": Column(),
    "text": Column(),
    "input": Column(may_be_empty=True),
    "system": Column(may_be_empty=True),
}
"""Every column that is read, `label` and `tools` aside."""
LISTS = frozenset(name for name, column in COLUMNS.items() if not column.holds_text) | {"label"}


def row_faults(row: Row, kind: DatasetType) -> Sequence[Fault]:
    """Everything that is wrong with a row that has the columns of its kind."""
    faults: list[Fault] = []
    for column in kind.columns:
        value = row[column]
        if type(value) is not str or column in LISTS or not value or value.isspace():
            faults += _column_faults(row, column, kind)
    for column in kind.optional:
        if row.get(column):
            faults += _optional_faults(column, row[column])
    return faults or (_pair_faults(row, kind) if kind.dataset_type == "preference" else ())


def format_of(row: Row, kind: DatasetType) -> Format:
    """Whether a row holds messages or plain text."""
    for column in kind.columns:
        if type(row[column]) is list:
            return "conversational"
    return "standard"


def _column_faults(row: Row, column: str, kind: DatasetType) -> Sequence[Fault]:
    value = row[column]
    if column == "label":
        fix = "write true for an answer that is wanted, false for one that is not"
        wrong = Fault(column, "wrong_kind", f"is {kind_of_value(value)}, not true or false", fix)
        return () if isinstance(value, bool) else (wrong,)
    rule = COLUMNS[column]
    if isinstance(value, list) and rule.messages:
        if column == "conversations":
            return turn_faults(value, column)
        is_implicit = column in ("chosen", "rejected") and "prompt" not in kind.columns
        return message_faults(
            value, column, WHOLE if is_implicit else rule.messages, row.get("tools")
        )
    if not isinstance(value, str) or not rule.holds_text:
        message = f"is {kind_of_value(value)}, not {rule.wanted}"
        return (Fault(column, "wrong_kind", message, f"give {rule.wanted}"),)
    if not value.strip() and not (rule.may_be_empty and len(kind.columns) > 1):
        return (Fault(column, "empty", "is empty", "fill it in, or drop the row"),)
    return ()


def _optional_faults(column: str, value: object) -> Sequence[Fault]:
    """Faults of a column that a row need not have, but has."""
    if column == "tools":
        fault = tools_fault(value)
        return (fault,) if fault else ()
    if not isinstance(value, str):
        return (
            Fault(
                column,
                "wrong_kind",
                f"is {kind_of_value(value)}, not text",
                "give text, or leave it out",
            ),
        )
    if not value.strip():
        return (Fault(column, "empty", "holds only white space", "leave it out, or make it empty"),)
    return ()


def _pair_faults(row: Row, kind: DatasetType) -> Sequence[Fault]:
    """Faults of a preference that show only when its answers are seen together."""
    if row["chosen"] == row["rejected"]:
        return (
            Fault("rejected", "same_answer", "is the chosen answer", "give two different answers"),
        )
    if len({type(row[column]) for column in kind.columns}) > 1:
        return (
            Fault(
                "chosen",
                "mixed",
                "text beside messages",
                "write all columns of a row in the same way",
            ),
        )
    return () if "prompt" in kind.columns else _parting_faults(row["chosen"], row["rejected"])


def _parting_faults(chosen: Any, rejected: Any) -> Sequence[Fault]:
    """Faults of two answers whose prompt is what both begin with: as the trainer has it, a last space aside, and
    something of both is left.
    """
    last = min(len(chosen), len(rejected)) - 1
    if isinstance(chosen, list):
        fix = "begin both with the same question, or give a prompt"
        unlike = Fault(
            "rejected", "no_shared_prompt", "does not begin with the same message as chosen", fix
        )
        return () if last and chosen[0] == rejected[0] else (unlike,)
    for column, text, other in (("chosen", chosen, rejected), ("rejected", rejected, chosen)):
        if other.startswith(text.rstrip()):
            end = next((index for index in range(last) if chosen[index] != rejected[index]), last)
            end -= chosen[:end].endswith(" ")
            if not text[end:].strip():
                message = "is nothing but what the other answer begins with"
                return (Fault(column, "empty", message, "give two whole answers, or a prompt"),)
    return ()
