"""From a line of a file to a row in TRL's columns, as the training program reads it.

Standard library only. Opens no file and counts no tokens.
"""

import json

from .messages import Fault, json_type
from .row_columns import Row
from .row_formats import RowFormat, find_row_format, format_fault, row_faults
from .stages import STAGES

ANSWER_COLUMNS = ("answer", "solution", "ground_truth")
"""Columns beside a prompt that may hold the right answer to it, for reward functions."""


class BadRow(ValueError):
    """Raised for a row that cannot be trained on; the message says what is wrong and what to do."""


def read_row(line: bytes, stage: str = "sft", first: Row | None = None) -> Row:
    """Return a line of JSON as a row in TRL's columns. Raises BadRow.

    `first` is the first row of the file, whose columns all others must have.
    """
    row = _parse_object(line)
    row_format = find_row_format(row, stage)
    fault = format_fault(row, row_format, stage) or unused_tools_fault(row, stage)
    if fault or row_format is None:
        raise BadRow(str(fault))
    if faults := row_faults(row, row_format):
        raise BadRow(str(faults[0]))
    found = trl_row(row, row_format, stage)
    if first and columns_of(found) != columns_of(first):
        raise BadRow("is of another format than the first row; write all rows in the same way")
    return found


def trl_row(row: Row, row_format: RowFormat, stage: str) -> Row:
    """Return a sound row in the columns that TRL's trainer of a stage reads."""
    found = row_format.convert(row)
    if STAGES[stage].generates:
        return {"prompt": found["prompt"], "answer": _right_answer(found, row)}
    if row_format.takes_tools:
        found["tools"] = json.dumps(row["tools"]) if row.get("tools") else None
    return found


def columns_of(row: Row) -> dict[str, type]:
    """Return what all rows of a training share: the columns in TRL's names, with their types."""
    return {name: type(value) for name, value in row.items() if name not in ("tools", "answer")}


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


def _right_answer(found: Row, row: Row) -> str | None:
    """Return the answer that a row holds beside its prompt, as text; None if it holds none."""
    answer = found.get("completion")
    if isinstance(answer, list):
        return str(answer[-1].get("content") or "")
    for name in ANSWER_COLUMNS:
        if row.get(name) is not None:
            answer = row[name]
            break
    return answer if isinstance(answer, str | None) else json.dumps(answer)


def unused_tools_fault(row: Row, stage: str) -> Fault | None:
    """Return a fault for a row with tools in a stage whose model answers during the training."""
    if STAGES[stage].generates and row.get("tools"):
        message = f"{stage} offers no tools while it generates answers"
        return Fault("tools", "tools_unused", message, "leave them out")
    return None
