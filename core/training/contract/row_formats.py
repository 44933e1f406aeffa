"""ROW_FORMATS: the ways to write a row, what is wrong with one, and how it becomes TRL's columns.

The check of a dataset and the training program both read rows with this file, so that no row passes
the check that the training refuses. Standard library only; knows nothing of files and tokens.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from types import MappingProxyType
from typing import Literal

from .messages import ANSWER, WHOLE, Fault, as_messages
from .row_columns import (
    COMPLETION,
    CONVERSATIONS,
    LABEL,
    MESSAGES,
    PROMPT_BEFORE_ANSWER,
    PROMPT_ONLY,
    SYSTEM,
    TOOLS,
    ColumnRule,
    Row,
    optional_faults,
    pair_faults,
    required_faults,
    shared_length,
    text_or_messages,
)
from .stages import STAGES

TextFormat = Literal["standard", "conversational", ""]
"""TRL's word for rows of plain text and for rows of messages; empty if there is no row."""
LONGEST_NAMES_SHOWN = 200
"""Characters of a row's column names that a message to the user quotes."""


@dataclass(frozen=True)
class RowFormat:
    """One way to write rows: its columns, an example, and its conversion to TRL's columns."""

    id: str
    dataset_type: str
    """TRL's name for it."""
    required: tuple[ColumnRule, ...]
    """In the order in which a person reads them."""
    optional: tuple[ColumnRule, ...]
    """Further columns that are read if a row has them."""
    example: str
    """One row, in JSON."""
    convert: Callable[[Row], Row]
    """Turn a sound row into TRL's columns; its tools are added by `trl_row`."""

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that a row must have."""
        return tuple(rule.name for rule in self.required)

    @cached_property
    def optional_columns(self) -> tuple[str, ...]:
        """Names of the columns that a row may have."""
        return tuple(rule.name for rule in self.optional)

    @cached_property
    def takes_tools(self) -> bool:
        return TOOLS in self.optional


def _said(role: str, content: str) -> list[Row]:
    return [{"role": role, "content": content}]


def _convert_same(*columns: str) -> Callable[[Row], Row]:
    """Return a conversion that keeps these columns as they are."""
    return lambda row: {name: row[name] for name in columns}


def _convert_sharegpt(row: Row) -> Row:
    """Return a ShareGPT conversation as messages; its system prompt may stand in a column."""
    system = _said("system", row["system"]) if row.get("system") else []
    return {"messages": system + as_messages(row["conversations"])}


def _convert_implicit_preference(row: Row) -> Row:
    """Return a preference whose prompt is the beginning that both answers share."""
    chosen, rejected = row["chosen"], row["rejected"]
    end = shared_length(chosen, rejected)
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


def _convert_exchange(row: Row, question: str, answer: str) -> Row:
    """Return a question, with its `input` if it has one, and its answer as messages."""
    text = row[question]
    if question == "instruction" and row.get("input"):
        text += "\n\n" + row["input"]
    system = _said("system", row["system"]) if row.get("system") else []
    return {
        "prompt": system + _said("user", text),
        "completion": _said("assistant", row[answer]),
    }


ROW_FORMATS: tuple[RowFormat, ...] = (
    RowFormat(
        id="messages",
        dataset_type="language modeling",
        required=(MESSAGES,),
        optional=(TOOLS,),
        example='{"messages": [{"role": "user", "content": "2 + 2?"}, '
        '{"role": "assistant", "content": "4"}]}',
        convert=_convert_same("messages"),
    ),
    RowFormat(
        id="ShareGPT",
        dataset_type="language modeling",
        required=(CONVERSATIONS,),
        optional=(SYSTEM, TOOLS),
        example='{"conversations": [{"from": "human", "value": "2 + 2?"}, '
        '{"from": "gpt", "value": "4"}], "system": "Be brief."}',
        convert=_convert_sharegpt,
    ),
    RowFormat(
        id="preference",
        dataset_type="preference",
        required=(
            PROMPT_BEFORE_ANSWER,
            text_or_messages("chosen", ANSWER),
            text_or_messages("rejected", ANSWER),
        ),
        optional=(TOOLS,),
        example='{"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}',
        convert=_convert_same("prompt", "chosen", "rejected"),
    ),
    RowFormat(
        id="preference without prompt",
        dataset_type="preference",
        required=(text_or_messages("chosen", WHOLE), text_or_messages("rejected", WHOLE)),
        optional=(TOOLS,),
        example='{"chosen": "2 + 2 is 4", "rejected": "2 + 2 is 5"}',
        convert=_convert_implicit_preference,
    ),
    RowFormat(
        id="unpaired preference",
        dataset_type="unpaired preference",
        required=(PROMPT_BEFORE_ANSWER, COMPLETION, LABEL),
        optional=(TOOLS,),
        example='{"prompt": "2 + 2?", "completion": "5", "label": false}',
        convert=_convert_unpaired,
    ),
    RowFormat(
        id="prompt and completion",
        dataset_type="prompt-completion",
        required=(PROMPT_BEFORE_ANSWER, COMPLETION),
        optional=(TOOLS,),
        example='{"prompt": "2 + 2?", "completion": "4"}',
        convert=_convert_prompt_completion,
    ),
    RowFormat(
        id="instruction and output",
        dataset_type="prompt-completion",
        required=(ColumnRule("instruction"), ColumnRule("output")),
        optional=(ColumnRule("input"), SYSTEM),
        example='{"instruction": "Add.", "input": "2 and 2", "output": "4"}',
        convert=partial(_convert_exchange, question="instruction", answer="output"),
    ),
    RowFormat(
        id="question and answer",
        dataset_type="prompt-completion",
        required=(ColumnRule("question"), ColumnRule("answer")),
        optional=(SYSTEM,),
        example='{"question": "2 + 2?", "answer": "4"}',
        convert=partial(_convert_exchange, question="question", answer="answer"),
    ),
    RowFormat(
        id="text",
        dataset_type="language modeling",
        required=(ColumnRule("text"),),
        optional=(),
        example='{"text": "Two and two make four."}',
        convert=_convert_same("text"),
    ),
    RowFormat(
        id="prompt only",
        dataset_type="prompt-only",
        required=(PROMPT_ONLY,),
        optional=(TOOLS,),
        example='{"prompt": "2 + 2?", "answer": "4"}',
        convert=_convert_same("prompt"),
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


def find_row_format(columns: Iterable[str], stage: str) -> RowFormat | None:
    """Return the format of a row with these columns, as the stage reads it; None if unknown."""
    present = frozenset(columns)
    fitting = [each for each in ROW_FORMATS if present.issuperset(each.columns)]
    for row_format in fitting:
        if accepts(stage, row_format):
            return row_format
    return fitting[0] if fitting else None


def format_fault(columns: Iterable[str], row_format: RowFormat | None, stage: str) -> Fault | None:
    """Return why a stage cannot read rows with these columns, which are of this format."""
    if row_format is None:
        known = [" + ".join(each.columns) for each in ROW_FORMATS if accepts(stage, each)]
        shown = ", ".join(columns)[:LONGEST_NAMES_SHOWN] or "none"
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
    for rule in row_format.required:
        value = row[rule.name]
        # Most values are texts with something in them: look no further at these.
        if type(value) is not str or not rule.takes_text or not value or value.isspace():
            faults += required_faults(row, rule)
    for rule in row_format.optional:
        if row.get(rule.name):
            faults += optional_faults(row, rule)
    if faults or row_format.dataset_type != "preference":
        return faults
    if len({type(row[column]) for column in row_format.columns}) > 1:
        fix = "write all columns of a row in the same way"
        return (Fault("chosen", "mixed", "text beside messages", fix),)
    shares_prompt = "prompt" not in row_format.columns
    return pair_faults(row["chosen"], row["rejected"], shares_prompt=shares_prompt)


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
