"""Read the rows of a job from JSONL files and hold out evaluation rows. Names the line of a bad
row; never counts tokens.
"""

import json
from array import array
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas.io.json
from datasets import Dataset, Features, Json, List, Value

from ..contract.failures import TrainingError
from ..contract.row_columns import Row
from ..contract.row_reader import (
    BadRow,
    columns_of,
    content_key,
    held_out_rows,
    leak_sentence,
    read_row,
    unpaired_rows,
)
from ..contract.stages import DEFAULT_STAGE, STAGES
from .plain_text import cuts_prompt

# datasets reads and writes JSON columns with pandas' parser, which rounds numbers to ten digits and
# loses very large ones.
pandas.io.json.ujson_loads, pandas.io.json.ujson_dumps = json.loads, json.dumps


class NumberedRow(NamedTuple):
    """Row with its line in its file."""

    line: int
    row: Row


@dataclass(frozen=True)
class Rows:
    """Training and evaluation rows in TRL's columns."""

    train: Dataset
    eval: Dataset | None
    train_lines: Sequence[int]
    """Line of each row in its file."""
    eval_lines: Sequence[int]
    first: Row
    """First row of the training file, which shows how the rows are written."""
    has_cut_prompts: bool
    """True if each prompt is the text with which both answers of a preference begin."""
    leak: str = ""
    """Sentence about evaluation rows that are trained on too; empty if none are."""

    @property
    def files(self) -> Iterator[tuple[Dataset, Sequence[int], str]]:
        """Rows, their lines and the job field that names their file: of training, then of
        evaluation, if there are any."""
        yield self.train, self.train_lines, "dataset"
        if self.eval is not None:
            yield self.eval, self.eval_lines, "eval_dataset"

    @property
    def is_language_modeling(self) -> bool:
        """True for whole texts or conversations, False for prompts with what follows them."""
        return "prompt" not in self.train.column_names

    @property
    def is_conversational(self) -> bool:
        """True for messages, False for plain text."""
        return isinstance(self.train[0][self.train.column_names[0]], list)

    @property
    def has_marked_answers(self) -> bool:
        """True unless the rows are plain texts, which do not say where an answer begins."""
        return "text" not in self.train.column_names


def read_rows(
    folder: Path,
    dataset: str,
    eval_dataset: str,
    eval_fraction: float,
    seed: int,
    *,
    stage: str = DEFAULT_STAGE,
) -> Rows:
    """Read the rows of a job for its stage. Without an eval_dataset, hold out a share of the rows.

    Relative paths start in the run folder. Raises TrainingError with the line of a bad row.
    """
    train = _read_file(folder / dataset, "dataset", stage)
    leak = ""
    if eval_dataset:
        held_out = _read_file(folder / eval_dataset, "eval_dataset", stage)
        if columns_of(train[0].row) != columns_of(held_out[0].row):
            raise TrainingError(
                "The rows of eval_dataset are of another format than those of dataset."
            )
        leak = _leak(train, held_out)
    else:
        train, held_out = _split(train, eval_fraction, seed)
    is_paired = "chosen" in train[0].row
    if is_paired and "unpaired preference" in STAGES[stage].dataset_types:
        train, held_out = _unpaired(train), _unpaired(held_out)
    _number, line = next(_lines(folder / dataset))
    first = read_row(line, stage)
    features = _features([*train, *held_out])
    return Rows(
        train=_to_dataset(train, features),
        eval=_to_dataset(held_out, features) if held_out else None,
        train_lines=array("L", (line for line, _row in train)),
        eval_lines=array("L", (line for line, _row in held_out)),
        first=first,
        has_cut_prompts=cuts_prompt(line, first),
        leak=leak,
    )


@contextmanager
def naming_line(field: str, line: int) -> Iterator[None]:
    """Turn a BadRow that the block raises into a TrainingError that names the line."""
    try:
        yield
    except BadRow as error:
        raise TrainingError(f"{field} line {line}: {error}.", cause="bad_row") from None


def _read_file(path: Path, field: str, stage: str) -> list[NumberedRow]:
    """Read every row of a file; all must have the format of the first."""
    rows: list[NumberedRow] = []
    try:
        for number, line in _lines(path):
            first = rows[0].row if rows else None
            with naming_line(field, number):
                rows.append(NumberedRow(number, read_row(line, stage, first)))
    except OSError as error:
        raise TrainingError(f"{field} {path} cannot be read: {error.strerror}.") from error
    if not rows:
        raise TrainingError(f"{field} {path} has no rows.")
    return rows


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (number, line) of the lines that are not blank."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            text = line.removeprefix(BOM_UTF8).strip()
            if text:
                yield number, text


def _split(
    rows: list[NumberedRow], fraction: float, seed: int
) -> tuple[list[NumberedRow], list[NumberedRow]]:
    """Return (rows to train on, rows held out), both in the order of the file.

    Equal rows are on the same side.
    """
    keys = [content_key(row) for _line, row in rows] if fraction else []
    chosen = held_out_rows(keys, fraction, seed)
    kept = [row for index, row in enumerate(rows) if index not in chosen]
    held_out = [row for index, row in enumerate(rows) if index in chosen]
    return kept, held_out


def _leak(train: list[NumberedRow], held_out: list[NumberedRow]) -> str:
    """Return a sentence about the evaluation rows that are trained on too, or ""."""
    trained = {content_key(row) for _line, row in train}
    num_leaked = sum(content_key(row) in trained for _line, row in held_out)
    return leak_sentence(num_leaked, len(held_out))


def _unpaired(rows: list[NumberedRow]) -> list[NumberedRow]:
    """Split each preference into its two answers."""
    return [NumberedRow(line, answer) for line, row in rows for answer in unpaired_rows(row)]


def _to_dataset(rows: list[NumberedRow], features: Features) -> Dataset:
    empty = dict.fromkeys(features)
    return Dataset.from_list([empty | row for _line, row in rows], features=features)


def _features(rows: list[NumberedRow]) -> Features:
    """Return the types of all columns; a column that some rows lack is null in those."""
    columns = dict(rows[0].row)
    for _line, row in rows[1:]:
        for name, value in row.items():
            columns.setdefault(name, value)
    return Features({name: _feature(name, value) for name, value in columns.items()})


def _feature(name: str, value: object) -> List | Value:
    if name == "trained_messages":
        return List(Value("bool"))
    if isinstance(value, list):
        # Messages stay JSON: as Arrow structs each would get every key of every other, with nulls.
        return List(Json())
    return Value("bool" if isinstance(value, bool) else "string")
