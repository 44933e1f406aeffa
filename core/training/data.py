"""The rows: reads JSONL, turns each way of writing them into TRL's columns, sets evaluation rows aside.

Reads plain JSON line by line; a bad line is named by its number. Knows nothing of tokens.
"""

import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas.io.json
from datasets import Dataset, Features, Json, List, Value

from .failure import TrainingError

# datasets keeps JSON columns with the one of pandas, which rounds numbers to ten digits and loses very large ones.
pandas.io.json.ujson_loads, pandas.io.json.ujson_dumps = json.loads, json.dumps

Row = dict[str, Any]
FEWEST_ROWS_TO_SPLIT = 20
ROLES = ("assistant", "developer", "system", "tool", "user")
SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}
"""What ShareGPT calls the roles."""


@dataclass(frozen=True)
class Rows:
    """What is trained on, in TRL's columns."""

    train: Dataset
    eval: Dataset | None

    @property
    def is_language_modeling(self) -> bool:
        """True for whole texts or conversations, False for prompts with their completions."""
        return "prompt" not in self.train.column_names

    @property
    def is_conversational(self) -> bool:
        """True for messages, False for plain text."""
        return isinstance(self.train[0][self.train.column_names[0]], list)

    @property
    def has_marked_answers(self) -> bool:
        """True unless the rows are plain texts, in which nothing tells questions from answers."""
        return "text" not in self.train.column_names


class BadRow(ValueError):
    """What is wrong with one row, in a few words."""


def read_rows(folder: Path, dataset: str, eval_dataset: str, eval_fraction: float, seed: int) -> Rows:
    """The rows of a job's files; without an eval_dataset a share of the training rows is set aside.

    Relative paths are relative to the run folder. Raises TrainingError naming the file's line that cannot be used.
    """
    train = _read(folder / dataset, "dataset")
    if eval_dataset:
        held_out = _read(folder / eval_dataset, "eval_dataset")
        if _form(train[0]) != _form(held_out[0]):
            raise TrainingError("The rows of eval_dataset are of another kind than those of dataset.")
    else:
        train, held_out = _split(train, eval_fraction, seed)
    features = _features(train[0])
    return Rows(
        train=Dataset.from_list(train, features=features),
        eval=Dataset.from_list(held_out, features=features) if held_out else None,
    )


def _read(path: Path, field: str) -> list[Row]:
    """Every row of a file, all of the kind of the first."""
    rows: list[Row] = []
    try:
        for number, line in _lines(path):
            try:
                rows.append(parse(line, rows[0] if rows else None))
            except BadRow as error:
                raise TrainingError(f"{field} line {number}: {error}.") from None
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


def parse(line: bytes, first: Row | None = None) -> Row:
    """A line as a row in TRL's columns, of the same kind as the first row. Raises BadRow."""
    fields = _object(line)
    kind = next((kind for kind in KINDS if all(column in fields for column in kind.columns)), None)
    if kind is None:
        known = ", ".join(" + ".join(kind.columns) for kind in KINDS)
        raise BadRow(f"has {', '.join(fields) or 'no fields'}, but one of these is needed: {known}")
    row = kind.convert(fields)
    if first and _form(row) != _form(first):
        raise BadRow("is of another kind than the first row")
    if kind.takes_tools:
        row["tools"] = json.dumps(fields["tools"]) if fields.get("tools") else None
    return row


def _object(line: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except UnicodeDecodeError:
        raise BadRow("not UTF-8") from None
    except json.JSONDecodeError as error:
        raise BadRow(f"not JSON at column {error.colno}: {error.msg}") from None
    if not isinstance(fields, dict):
        raise BadRow(f"a {type(fields).__name__}, not an object")
    return fields


def _form(row: Row) -> dict[str, type]:
    """What must be the same in every row: the columns, and whether they hold text or messages."""
    return {name: type(value) for name, value in row.items() if name != "tools"}


def _split(rows: list[Row], fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
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
    return Features({name: List(Json()) if isinstance(value, list) else Value("string") for name, value in row.items()})


def _conversation(fields: Mapping[str, Any]) -> Row:
    messages = _messages(fields["messages"], "messages")
    if not any(message["role"] == "assistant" for message in messages):
        raise BadRow("messages has no assistant message")
    return {"messages": messages}


def _turns(fields: Mapping[str, Any]) -> Row:
    """A ShareGPT conversation as messages; a system prompt may stand beside it."""
    turns = fields["conversations"]
    if not isinstance(turns, list):
        raise BadRow("conversations is not a list of turns")
    for index, turn in enumerate(turns):
        if not isinstance(turn, dict) or turn.get("from") not in SHAREGPT_ROLES:
            raise BadRow(f"conversations[{index}] is not from one of {', '.join(SHAREGPT_ROLES)}")
    instructions = _said("system", _text(fields["system"], "system")) if fields.get("system") else []
    messages = [{"role": SHAREGPT_ROLES[turn["from"]], "content": turn.get("value")} for turn in turns]
    return _conversation({"messages": instructions + messages})


def _prompt_completion(fields: Mapping[str, Any]) -> Row:
    prompt, completion = fields["prompt"], fields["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        return {"prompt": prompt, "completion": _text(completion, "completion")}
    return {
        "prompt": _messages(_said("user", prompt) if isinstance(prompt, str) else prompt, "prompt"),
        "completion": _messages(
            _said("assistant", completion) if isinstance(completion, str) else completion, "completion"
        ),
    }


def _instruction(fields: Mapping[str, Any]) -> Row:
    question = _text(fields["instruction"], "instruction")
    if context := fields.get("input"):
        question += "\n\n" + _text(context, "input")
    return _exchange(question, _text(fields["output"], "output"), fields.get("system"))


def _question(fields: Mapping[str, Any]) -> Row:
    return _exchange(_text(fields["question"], "question"), _text(fields["answer"], "answer"), fields.get("system"))


def _plain_text(fields: Mapping[str, Any]) -> Row:
    return {"text": _text(fields["text"], "text")}


def _exchange(question: str, answer: str, system: object) -> Row:
    """One question and its answer as messages, for the model's chat template."""
    instructions = _said("system", _text(system, "system")) if system else []
    return {"prompt": instructions + _said("user", question), "completion": _said("assistant", answer)}


def _said(role: str, content: str) -> list[Row]:
    return [{"role": role, "content": content}]


def _messages(value: object, name: str) -> list[Row]:
    if not isinstance(value, list) or not value:
        raise BadRow(f"{name} is not a list of messages")
    for index, message in enumerate(value):
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise BadRow(f"{name}[{index}] has no role among {', '.join(ROLES)}")
        if not isinstance(message.get("content"), str) and not message.get("tool_calls"):
            raise BadRow(f"{name}[{index}] has no text as its content")
    return value


def _text(value: object, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise BadRow(f"{name} is empty" if isinstance(value, str) else f"{name} is not text")
    return value


@dataclass(frozen=True)
class Kind:
    """One way of writing rows: the fields that give it away, and how it becomes TRL's columns."""

    columns: tuple[str, ...]
    convert: Callable[[Mapping[str, Any]], Row]
    takes_tools: bool = False


KINDS = (
    Kind(("messages",), _conversation, takes_tools=True),
    Kind(("conversations",), _turns, takes_tools=True),
    Kind(("prompt", "completion"), _prompt_completion, takes_tools=True),
    Kind(("instruction", "output"), _instruction),
    Kind(("question", "answer"), _question),
    Kind(("text",), _plain_text),
)
