"""ROW_FORMATS: the ways to write a row, what is wrong with one, and how it becomes TRL's columns.

The check of a dataset and the training program both read rows with this file, so that no row passes
the check that the training refuses. Standard library only; knows nothing of files and tokens.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Literal

from . import row_columns as columns
from .messages import ANSWER, PROMPT, WHOLE, Fault, as_messages
from .row_columns import ColumnCheck, Row
from .stages import STAGES

TextFormat = Literal["standard", "conversational", ""]
"""TRL's word for rows of plain text and for rows of messages; empty if there is no row."""
LONGEST_NAMES_SHOWN = 200
"""Characters of a row's column names that a message to the user quotes."""


@dataclass(frozen=True, eq=False)
class RowFormat:
    """One way to write rows: its columns, an example, and its conversion to TRL's columns."""

    id: str
    dataset_type: str
    """TRL's name for it."""
    required: Mapping[str, ColumnCheck]
    """Column -> its check, in the order in which a person reads them."""
    optional: Mapping[str, ColumnCheck]
    """Further columns that are read if a row has them."""
    convert: Callable[[Row], Row]
    """Turn a sound row into TRL's columns; its tools are added by `trl_row`."""
    example: str
    """One row, in JSON."""

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that a row must have."""
        return tuple(self.required)

    @property
    def takes_tools(self) -> bool:
        return "tools" in self.optional


def _said(role: str, content: str) -> list[Row]:
    return [{"role": role, "content": content}]


def _convert_same(*names: str) -> Callable[[Row], Row]:
    """Return a conversion that keeps these columns as they are."""
    return lambda row: {name: row[name] for name in names}


def _convert_sharegpt(row: Row) -> Row:
    """Return a ShareGPT conversation as messages; its system prompt may stand in a column."""
    system = _said("system", row["system"]) if row.get("system") else []
    return {"messages": system + as_messages(row["conversations"])}


def _convert_implicit_preference(row: Row) -> Row:
    """Return a preference whose prompt is the beginning that both answers share."""
    chosen, rejected = row["chosen"], row["rejected"]
    end = columns.shared_length(chosen, rejected)
    return {"prompt": chosen[:end], "chosen": chosen[end:], "rejected": rejected[end:]}


def _convert_prompt_completion(row: Row) -> Row:
    """Return both columns as text, or both as messages if one of them is a list of messages."""
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        return {"prompt": prompt, "completion": completion}
    if isinstance(prompt, str):
        prompt = _said("user", prompt)
    if isinstance(completion, str):
        completion = _said("assistant", completion)
    return {"prompt": prompt, "completion": completion}


def _convert_unpaired(row: Row) -> Row:
    return _convert_prompt_completion(row) | {"label": row["label"]}


def _with_input(row: Row) -> str:
    """Return an instruction with its input, if it has one."""
    instruction = str(row["instruction"])
    return f"{instruction}\n\n{row['input']}" if row.get("input") else instruction


def _exchange(row: Row, question: str, answer: str) -> Row:
    """Return a question and its answer as messages, after the row's system prompt."""
    system = _said("system", row["system"]) if row.get("system") else []
    prompt = system + _said("user", question)
    return {"prompt": prompt, "completion": _said("assistant", answer)}


TEXT, TOOLS = columns.text, columns.tools
PROMPT_BEFORE_ANSWER = columns.text_or_messages(PROMPT, may_be_empty=True)
LAST_ANSWER = columns.text_or_messages(ANSWER)
WHOLE_ANSWER = columns.text_or_messages(WHOLE)
ROW_FORMATS: tuple[RowFormat, ...] = (
    RowFormat(
        "messages",
        "language modeling",
        {"messages": columns.messages(WHOLE)},
        {"tools": TOOLS},
        _convert_same("messages"),
        '{"messages": [{"role": "user", "content": "2 + 2?"}, '
        '{"role": "assistant", "content": "4"}]}',
    ),
    RowFormat(
        "ShareGPT",
        "language modeling",
        {"conversations": columns.turns},
        {"system": TEXT, "tools": TOOLS},
        _convert_sharegpt,
        '{"conversations": [{"from": "human", "value": "2 + 2?"}, '
        '{"from": "gpt", "value": "4"}], "system": "Be brief."}',
    ),
    RowFormat(
        "preference",
        "preference",
        {"prompt": PROMPT_BEFORE_ANSWER, "chosen": LAST_ANSWER, "rejected": LAST_ANSWER},
        {"tools": TOOLS},
        _convert_same("prompt", "chosen", "rejected"),
        '{"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}',
    ),
    RowFormat(
        "preference without prompt",
        "preference",
        {"chosen": WHOLE_ANSWER, "rejected": WHOLE_ANSWER},
        {"tools": TOOLS},
        _convert_implicit_preference,
        '{"chosen": "2 + 2 is 4", "rejected": "2 + 2 is 5"}',
    ),
    RowFormat(
        "unpaired preference",
        "unpaired preference",
        {"prompt": PROMPT_BEFORE_ANSWER, "completion": LAST_ANSWER, "label": columns.label},
        {"tools": TOOLS},
        _convert_unpaired,
        '{"prompt": "2 + 2?", "completion": "5", "label": false}',
    ),
    RowFormat(
        "prompt and completion",
        "prompt-completion",
        {"prompt": PROMPT_BEFORE_ANSWER, "completion": LAST_ANSWER},
        {"tools": TOOLS},
        _convert_prompt_completion,
        '{"prompt": "2 + 2?", "completion": "4"}',
    ),
    RowFormat(
        "instruction and output",
        "prompt-completion",
        {"instruction": TEXT, "output": TEXT},
        {"input": TEXT, "system": TEXT},
        lambda row: _exchange(row, _with_input(row), row["output"]),
        '{"instruction": "Add.", "input": "2 and 2", "output": "4"}',
    ),
    RowFormat(
        "question and answer",
        "prompt-completion",
        {"question": TEXT, "answer": TEXT},
        {"system": TEXT},
        lambda row: _exchange(row, row["question"], row["answer"]),
        '{"question": "2 + 2?", "answer": "4"}',
    ),
    RowFormat(
        "text",
        "language modeling",
        {"text": TEXT},
        {},
        _convert_same("text"),
        '{"text": "Two and two make four."}',
    ),
    RowFormat(
        "prompt only",
        "prompt-only",
        {"prompt": columns.text_or_messages(PROMPT)},
        {"tools": TOOLS},
        _convert_same("prompt"),
        '{"prompt": "2 + 2?", "answer": "4"}',
    ),
)
"""In order of precedence: a row with the columns of several is read as the first that its stage
accepts."""
ROW_FORMATS_BY_ID: Mapping[str, RowFormat] = MappingProxyType(
    {each.id: each for each in ROW_FORMATS}
)


def accepts(stage: str, row_format: RowFormat) -> bool:
    """Return whether a stage can train on rows of a format."""
    return row_format.dataset_type in STAGES[stage].dataset_types


def stages_for(dataset_type: str) -> tuple[str, ...]:
    """Return the stages that can train on rows of a type."""
    fitting = (each for each in STAGES.values() if dataset_type in each.dataset_types)
    return tuple(stage.id for stage in fitting if stage.is_trainable)


def find_row_format(names: Iterable[str], stage: str) -> RowFormat | None:
    """Return the format of a row with these columns, as the stage reads it; None if unknown."""
    present = frozenset(names)
    fitting = [each for each in ROW_FORMATS if present.issuperset(each.columns)]
    for row_format in fitting:
        if accepts(stage, row_format):
            return row_format
    return fitting[0] if fitting else None


def format_fault(names: Iterable[str], row_format: RowFormat | None, stage: str) -> Fault | None:
    """Return why a stage cannot read rows with these columns, which are of this format."""
    if row_format is None:
        known = [" + ".join(each.columns) for each in ROW_FORMATS if accepts(stage, each)]
        shown = ", ".join(names)[:LONGEST_NAMES_SHOWN] or "none"
        message, fix = f"no known columns among {shown}", f"use one of: {', '.join(known)}"
        return Fault("row", "unknown_columns", message, fix)
    if not accepts(stage, row_format):
        data_type = row_format.dataset_type
        needed = _any_of(STAGES[stage].dataset_types)
        fix = f"choose {_any_of(stages_for(data_type))}; {stage} needs {needed}"
        return Fault("row", "wrong_type", f"is {data_type} data", fix)
    return None


def row_faults(row: Row, row_format: RowFormat) -> Sequence[Fault]:
    """Return everything that is wrong with a row that has the columns of its format."""
    faults: list[Fault] = []
    for name, check in row_format.required.items():
        value = row[name]
        # Most values are plain texts, and a call for each would take half the time of a check.
        if check is not TEXT or type(value) is not str or not value or value.isspace():
            faults += check(value, name, row)
    for name, check in row_format.optional.items():
        if value := row.get(name):
            faults += check(value, name, row)
    if faults or row_format.dataset_type != "preference":
        return faults
    if len({type(row[column]) for column in row_format.columns}) > 1:
        fix = "write all columns of a row in the same way"
        return (Fault("chosen", "mixed", "text beside messages", fix),)
    shares_prompt = "prompt" not in row_format.columns
    return columns.pair_faults(row["chosen"], row["rejected"], shares_prompt=shares_prompt)


def text_format(row: Row, row_format: RowFormat) -> TextFormat:
    """Return whether a row holds messages or plain text."""
    for column in row_format.columns:
        if type(row[column]) is list:
            return "conversational"
    return "standard"


def _any_of(names: Sequence[str]) -> str:
    """Return names as `dpo, kto or orpo`."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} or {names[-1]}"
