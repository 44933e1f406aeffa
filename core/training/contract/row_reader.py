"""From a line of a file to a row in TRL's columns, as the training program reads it; and which
rows are held out for evaluation.

Standard library only. Opens no file and counts no tokens.
"""

import json
from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b

from .messages import Fault, json_type
from .row_columns import Row
from .row_formats import RowFormat, find_row_format, format_fault, row_faults
from .stages import STAGES

ANSWER_COLUMNS = ("answer", "solution", "ground_truth")
"""Columns beside a prompt that may hold the right answer to it, for reward functions."""
FEWEST_ROWS_TO_SPLIT = 20
"""Of fewer rows none is held out: one row would say nothing."""
LARGEST_SHARE = 0.5
"""Most that is held out where rows repeat so often that no smaller share can be."""


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


def content_of(line: bytes, stage: str) -> Row | bytes:
    """Return a line as `read_row` does, without a check; a line that is no row as it is."""
    try:
        row = _parse_object(line)
        row_format = find_row_format(row, stage)
        return trl_row(row, row_format, stage) if row_format else line
    except (BadRow, AttributeError, LookupError, TypeError, ValueError, RecursionError):
        return line


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
