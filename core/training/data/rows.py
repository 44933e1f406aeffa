"""The rows: reads JSONL files, sets evaluation rows aside; a bad line is named by its number. Never counts tokens."""

import json
import random
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas.io.json
from datasets import Dataset, Features, Json, List, Value

from ..contract.failures import TrainingError
from ..contract.row_columns import Row
from ..contract.row_reader import BadRow, columns_of, read_row, unpaired_rows
from ..contract.stages import STAGES

# datasets keeps JSON columns with the one of pandas, which rounds numbers to ten digits and loses very large ones.
pandas.io.json.ujson_loads, pandas.io.json.ujson_dumps = json.loads, json.dumps

FEWEST_ROWS_TO_SPLIT = 20


class Numbered(NamedTuple):
    """A row, and its line in its file."""

    line: int
    row: Row


@dataclass(frozen=True)
class Rows:
    """What is trained on, in TRL's columns."""

    train: Dataset
    eval: Dataset | None
    train_lines: Sequence[int]
    """The line of each row in its file."""
    eval_lines: Sequence[int]

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
        """True unless the rows are plain texts, in which nothing tells questions from answers."""
        return "text" not in self.train.column_names


def read_rows(
    folder: Path,
    dataset: str,
    eval_dataset: str,
    eval_fraction: float,
    seed: int,
    *,
    stage: str = "sft",
) -> Rows:
    """The rows of a job's files for its stage; without an eval_dataset a share of the training rows is set aside.

    Relative paths are relative to the run folder. Raises TrainingError naming the file's line that cannot be used.
    """
    train = _read(folder / dataset, "dataset", stage)
    if eval_dataset:
        held_out = _read(folder / eval_dataset, "eval_dataset", stage)
        if columns_of(train[0].row) != columns_of(held_out[0].row):
            raise TrainingError(
                "The rows of eval_dataset are of another kind than those of dataset."
            )
    else:
        train, held_out = _split(train, eval_fraction, seed)
    if "unpaired preference" in STAGES[stage].dataset_types and "chosen" in train[0].row:
        train, held_out = (
            [Numbered(line, each) for line, row in rows for each in unpaired_rows(row)]
            for rows in (train, held_out)
        )
    features = _features(train[0].row)
    return Rows(
        train=_table(train, features),
        eval=_table(held_out, features) if held_out else None,
        train_lines=array("L", (line for line, _row in train)),
        eval_lines=array("L", (line for line, _row in held_out)),
    )


def _table(rows: list[Numbered], features: Features) -> Dataset:
    return Dataset.from_list([row for _line, row in rows], features=features)


def _read(path: Path, field: str, stage: str) -> list[Numbered]:
    """Every row of a file, all of the kind of the first."""
    rows: list[Numbered] = []
    try:
        for number, line in _lines(path):
            try:
                rows.append(Numbered(number, read_row(line, stage, rows[0].row if rows else None)))
            except BadRow as error:
                raise TrainingError(f"{field} line {number}: {error}.", cause="bad_row") from None
    except OSError as error:
        raise TrainingError(f"{field} {path} cannot be read: {error.strerror}.") from error
    if not rows:
        raise TrainingError(f"{field} {path} has no rows.")
    return rows


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line := line.removeprefix(b"\xef\xbb\xbf").strip():
                yield number, line


def _split(
    rows: list[Numbered], fraction: float, seed: int
) -> tuple[list[Numbered], list[Numbered]]:
    """(rows to train on, rows held out), both in the order of the file."""
    if fraction == 0 or len(rows) < FEWEST_ROWS_TO_SPLIT:
        return rows, []
    count = max(1, round(fraction * len(rows)))
    chosen = set(random.Random(seed).sample(range(len(rows)), count))
    return (
        [row for index, row in enumerate(rows) if index not in chosen],
        [row for index, row in enumerate(rows) if index in chosen],
    )


def _features(row: Row) -> Features:
    """Messages are kept as JSON: as Arrow structs each would get every key of every other, with nulls."""
    return Features({name: _feature(value) for name, value in row.items()})


def _feature(value: object) -> List | Value:
    if isinstance(value, list):
        return List(Json())
    return Value("bool" if isinstance(value, bool) else "string")
