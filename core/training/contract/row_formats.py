"""ROW_FORMATS: the ways to write a row, and how each becomes TRL's columns.

The check of a dataset and the training program both read rows with these records, so that no row
passes the check that the training refuses. Standard library only; knows nothing of files and
tokens.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Literal

from . import row_conversions as read
from .messages import Fault, any_of
from .row_columns import Row
from .row_names import (
    BESIDE_CHAT,
    BESIDE_CONVERSATION,
    BESIDE_QUESTION,
    CHOSEN,
    COMPLETION,
    MESSAGES,
    QUESTIONS,
    REJECTED,
    SYSTEM,
    TOOLS,
    Names,
)
from .row_parts import RowParts
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
    required: Mapping[str, Names]
    """Part -> names of its column, in the order in which a person reads them."""
    optional: Mapping[str, Names]
    """Further parts that are read if a row has them."""
    convert: Callable[[RowParts], Row]
    """Read the parts of a row into TRL's columns; meaningless if it notes a fault."""
    example: str
    """One row, in JSON."""
    is_always_chat: bool = False
    """True if texts become messages, so that rows of text and of text with a system text mix."""

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Usual names of the columns that a row must have."""
        return tuple(names[0] for names in self.required.values())


@dataclass(frozen=True)
class RowLayout:
    """Row format of rows with certain columns, and which column holds which part."""

    row_format: RowFormat
    columns: Mapping[str, str]
    """Part -> name of its column, for the parts that a row must have."""
    beside: Mapping[str, Names] = field(default_factory=dict)
    """Part -> names of columns that may hold it, for the parts that a row may have."""

    @cached_property
    def read_names(self) -> frozenset[str]:
        """Names of all columns that are read."""
        beside = (name for names in self.beside.values() for name in names)
        return frozenset((*self.columns.values(), *beside))


LABEL = ("label", "kto_tag")


def _conversation(id: str, column: str, example: str) -> RowFormat:
    """Return the format of conversations in one column."""
    return RowFormat(
        id,
        "language modeling",
        {"messages": (column,)},
        BESIDE_CONVERSATION,
        read.conversation,
        example,
    )


def _preference(id: str, names: Names, example: str) -> RowFormat:
    """Return the format of preferences whose question stands in one of these columns."""
    return RowFormat(
        id,
        "preference",
        {"prompt": names, "chosen": CHOSEN, "rejected": REJECTED},
        BESIDE_QUESTION,
        read.preference if names == ("prompt",) else read.question_preference,
        example,
    )


def _question(id: str, questions: Names, answers: Names, example: str) -> RowFormat:
    """Return the format of questions and answers that are texts, and become messages."""
    return RowFormat(
        id,
        "prompt-completion",
        {"prompt": questions, "completion": answers},
        BESIDE_QUESTION,
        read.question_answer,
        example,
        is_always_chat=True,
    )


def _prompt(id: str, answers: Names, example: str) -> RowFormat:
    """Return the format of prompts and completions, which are texts or messages."""
    return RowFormat(
        id,
        "prompt-completion",
        {"prompt": ("prompt",), "completion": answers},
        BESIDE_QUESTION,
        read.prompt_completion,
        example,
    )


ROW_FORMATS: tuple[RowFormat, ...] = (
    _conversation(
        "messages",
        "messages",
        '{"messages": [{"role": "user", "content": "2 + 2?"}, '
        '{"role": "assistant", "content": "4"}]}',
    ),
    _conversation(
        "ShareGPT",
        "conversations",
        '{"conversations": [{"from": "human", "value": "2 + 2?"}, '
        '{"from": "gpt", "value": "4"}], "system": "Be brief."}',
    ),
    _conversation(
        "pairs",
        "conversation",
        '{"conversation": [{"system": "Be brief.", "input": "2 + 2?", "output": "4"}]}',
    ),
    _conversation(
        "contents",
        "contents",
        '{"contents": [{"role": "user", "parts": [{"text": "2 + 2?"}]}, '
        '{"role": "model", "parts": [{"text": "4"}]}]}',
    ),
    _preference(
        "preference",
        ("prompt",),
        '{"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}',
    ),
    _preference(
        "preference of an instruction",
        ("instruction",),
        '{"instruction": "Add.", "input": "2 and 2", "chosen": "4", "rejected": "5"}',
    ),
    _preference(
        "preference of a question",
        ("question", "query", "input"),
        '{"system": "Be brief.", "question": "2 + 2?", "chosen": "4", "rejected": "5"}',
    ),
    _preference(
        "preference of a conversation",
        ("conversations", "messages", "conversation", "contents"),
        '{"conversations": [{"from": "human", "value": "2 + 2?"}], '
        '"chosen": {"from": "gpt", "value": "4"}, "rejected": {"from": "gpt", "value": "5"}}',
    ),
    RowFormat(
        "preference of OpenAI",
        "preference",
        {
            "prompt": ("input",),
            "chosen": ("preferred_output",),
            "rejected": ("non_preferred_output",),
        },
        BESIDE_CHAT,
        read.preference,
        '{"input": {"messages": [{"role": "user", "content": "2 + 2?"}]}, '
        '"preferred_output": [{"role": "assistant", "content": "4"}], '
        '"non_preferred_output": [{"role": "assistant", "content": "5"}]}',
    ),
    RowFormat(
        "preference without prompt",
        "preference",
        {"chosen": CHOSEN, "rejected": REJECTED},
        BESIDE_CHAT,
        read.implicit_preference,
        '{"chosen": "2 + 2 is 4", "rejected": "2 + 2 is 5"}',
    ),
    RowFormat(
        "unpaired preference",
        "unpaired preference",
        {"prompt": ("prompt",), "completion": COMPLETION, "label": LABEL},
        BESIDE_QUESTION,
        read.unpaired,
        '{"prompt": "2 + 2?", "completion": "5", "label": false}',
    ),
    RowFormat(
        "unpaired question",
        "unpaired preference",
        {
            "prompt": ("instruction", "question", "query"),
            "completion": ("output", "answer", "response", "completion"),
            "label": LABEL,
        },
        BESIDE_QUESTION,
        read.unpaired_question,
        '{"instruction": "Add.", "input": "2 and 2", "output": "5", "label": false}',
        is_always_chat=True,
    ),
    RowFormat(
        "unpaired conversation",
        "unpaired preference",
        {"messages": MESSAGES, "label": LABEL},
        BESIDE_CHAT,
        read.unpaired_conversation,
        '{"messages": [{"role": "user", "content": "2 + 2?"}, '
        '{"role": "assistant", "content": "5"}], "label": false}',
    ),
    _prompt(
        "prompt and completion",
        ("completion",),
        '{"prompt": "2 + 2?", "completion": "4"}',
    ),
    _question(
        "instruction and output",
        ("instruction",),
        ("output",),
        '{"instruction": "Add.", "input": "2 and 2", "output": "4"}',
    ),
    _question(
        "question and answer",
        ("question",),
        ("answer",),
        '{"question": "2 + 2?", "answer": "4"}',
    ),
    _prompt(
        "prompt and response",
        ("response", "output"),
        '{"prompt": "2 + 2?", "response": "4"}',
    ),
    _question(
        "instruction and response",
        ("instruction",),
        ("response", "completion", "answer"),
        '{"instruction": "Add.", "context": "2 and 2", "response": "4"}',
    ),
    _question(
        "query and response",
        ("query", "question"),
        ("response", "answer", "completion", "output"),
        '{"query": "2 + 2?", "response": "4", "history": [["1 + 1?", "2"]]}',
    ),
    RowFormat(
        "text",
        "language modeling",
        {"text": ("text",)},
        {},
        read.text,
        '{"text": "Two and two make four."}',
    ),
    RowFormat(
        "prompt only",
        "prompt-only",
        {"prompt": ("prompt",)},
        BESIDE_QUESTION,
        read.prompt_only,
        '{"prompt": "2 + 2?", "answer": "4"}',
    ),
    _prompt("prompt and answer", ("answer",), '{"prompt": "2 + 2?", "answer": "4"}'),
    RowFormat(
        "question only",
        "prompt-only",
        {"prompt": ("question", "query", "instruction")},
        BESIDE_QUESTION,
        read.question_only,
        '{"question": "2 + 2?", "ground_truth": "4"}',
        is_always_chat=True,
    ),
    RowFormat(
        "conversation as prompt",
        "prompt-only",
        {"messages": MESSAGES},
        {"system": SYSTEM, "tools": TOOLS},
        read.conversation_prompt,
        '{"messages": [{"role": "user", "content": "2 + 2?"}], "ground_truth": "4"}',
    ),
)
"""In order of precedence: a row with the columns of several is read as the first that its stage
accepts."""
ROW_FORMATS_BY_ID: Mapping[str, RowFormat] = MappingProxyType(
    {each.id: each for each in ROW_FORMATS}
)

# fmt: off
USUAL_FORMATS = (
    "messages", "ShareGPT", "preference", "preference without prompt", "unpaired preference",
    "prompt and completion", "instruction and output", "question and answer", "text", "prompt only",
)
# fmt: on
"""Formats that a message to the user names."""


def accepts(stage: str, row_format: RowFormat) -> bool:
    """Return whether a stage can train on rows of a format."""
    return row_format.dataset_type in STAGES[stage].dataset_types


def stages_for(dataset_type: str) -> tuple[str, ...]:
    """Return the stages that can train on rows of a type."""
    fitting = (each for each in STAGES.values() if dataset_type in each.dataset_types)
    return tuple(stage.id for stage in fitting if stage.is_trainable)


def find_row_layout(names: Iterable[str], stage: str) -> RowLayout | None:
    """Return how a stage reads rows with these columns; None if they are of no known format.

    Columns of another stage's format are found too, to say which stage that is.
    """
    present = frozenset(names)
    first = None
    for row_format in ROW_FORMATS:
        layout = row_layout_of(row_format, present)
        if layout and accepts(stage, row_format):
            return layout
        first = first or layout
    return first


def row_layout_of(row_format: RowFormat, names: Iterable[str]) -> RowLayout | None:
    """Return which of a row's columns hold the parts of a format; None if one is missing."""
    present = frozenset(names)
    columns: dict[str, str] = {}
    for part, choices in row_format.required.items():
        found = [name for name in choices if name in present]
        if not found:
            return None
        columns[part] = found[0]
    beside: dict[str, Names] = {}
    for part, choices in row_format.optional.items():
        found = [name for name in choices if name in present and name not in columns.values()]
        if found:
            beside[part] = tuple(found)
    return RowLayout(row_format, columns, beside)


def find_row_format(names: Iterable[str], stage: str) -> RowFormat | None:
    """Return the format of a row with these columns, as the stage reads it; None if unknown."""
    layout = find_row_layout(names, stage)
    return layout.row_format if layout else None


def format_fault(names: Iterable[str], row_format: RowFormat | None, stage: str) -> Fault | None:
    """Return why a stage cannot read rows with these columns, which are of this format."""
    if row_format is None:
        return unknown_columns_fault(names, stage)
    if accepts(stage, row_format):
        return None
    data_type = row_format.dataset_type
    needed = any_of(STAGES[stage].dataset_types)
    fix = f"choose {any_of(stages_for(data_type))}; {stage} needs {needed}"
    fault = Fault("row", "wrong_type", f"is {data_type} data", fix)
    return _missing_answer(list(names)) or fault


def unknown_columns_fault(names: Iterable[str], stage: str) -> Fault:
    """Return the fault of a row whose columns are of no known format."""
    present = list(names)
    if missing := _missing_answer(present):
        return missing
    usual = (ROW_FORMATS_BY_ID[id] for id in USUAL_FORMATS)
    known = [" + ".join(each.columns) for each in usual if accepts(stage, each)]
    shown = ", ".join(present)[:LONGEST_NAMES_SHOWN] or "none"
    message, fix = f"no known columns among {shown}", f"use one of: {', '.join(known)}"
    return Fault("row", "unknown_columns", message, fix)


def _missing_answer(names: Sequence[str]) -> Fault | None:
    """Return the fault of a row that has one of the two answers of a preference."""
    for one, other in ((CHOSEN, REJECTED), (REJECTED, CHOSEN)):
        has_one = [name for name in one if name in names]
        if has_one and not any(name in names for name in other):
            missing = other[one.index(has_one[0])]
            beside = " + ".join(name for name in names if name in (*QUESTIONS, *has_one))
            message = f"{beside} without {missing}"
            fix = f"add {missing}: a preference has both answers"
            return Fault("row", "missing", message, fix)
    return None
