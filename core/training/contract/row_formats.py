"""ROW_FORMATS: the ways to write a row, and how each becomes TRL's columns.

The check of a dataset and the training program both read rows with these records, so that no row
passes the check that the training refuses. The door of row_layouts, row_names and lost_names too.
Standard library only; knows nothing of files and tokens.
"""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from . import row_conversions as read
from .lost_names import class_matters, class_of, is_media_value, may_matter
from .messages import Fault, any_of
from .row_layouts import RowFormat, RowLayout, TextFormat, row_layout_of
from .row_names import (
    BESIDE_CHAT,
    BESIDE_CONVERSATION,
    BESIDE_QUESTION,
    CHOSEN,
    COMPLETION,
    KEY_WORDS,
    MESSAGES,
    NOT_MAPPED,
    QUESTIONS,
    REJECTED,
    REJECTED_BESIDE_ANSWER,
    SYSTEM,
    TOOLS,
    Names,
    plain_name,
    words_of,
)
from .stages import STAGES

# fmt: off
__all__ = [
    "KEY_WORDS", "LABEL", "NOT_MAPPED", "ROW_FORMATS", "ROW_FORMATS_BY_ID", "RowFormat",
    "RowLayout", "TextFormat", "accepts", "class_matters", "class_of", "find_row_format",
    "find_row_layout", "format_fault", "is_media_value", "may_matter", "plain_name",
    "row_layout_of", "stages_for", "unknown_columns_fault", "words_of",
]
# fmt: on
LONGEST_NAMES_SHOWN = 200
"""Characters of a row's column names that a message to the user quotes."""

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


def _preference(
    id: str, names: Names, example: str, chosen: Names = CHOSEN, rejected: Names = REJECTED
) -> RowFormat:
    """Return the format of preferences whose question stands in one of these columns."""
    return RowFormat(
        id,
        "preference",
        {"prompt": names, "chosen": chosen, "rejected": rejected},
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
    _preference(
        "preference of a response",
        ("query", "prompt", "question", "instruction"),
        '{"query": "2 + 2?", "response": "4", "rejected_response": "5"}',
        chosen=("response", "output", "completion", "answer"),
        rejected=REJECTED_BESIDE_ANSWER,
    ),
    RowFormat(
        "preference of a last answer",
        "preference",
        {"messages": MESSAGES, "rejected": REJECTED_BESIDE_ANSWER},
        BESIDE_CHAT,
        read.last_answer_preference,
        '{"messages": [{"role": "user", "content": "2 + 2?"}, '
        '{"role": "assistant", "content": "4"}], "rejected_response": "5"}',
    ),
    RowFormat(
        "preference of scores",
        "preference",
        {"prompt": ("contents", *MESSAGES[:-1]), "completions": ("completions",)},
        BESIDE_CHAT,
        read.scored_preference,
        '{"contents": [{"role": "user", "parts": [{"text": "2 + 2?"}]}], "completions": '
        '[{"score": 1, "completion": {"role": "model", "parts": [{"text": "4"}]}}, '
        '{"score": 0, "completion": {"role": "model", "parts": [{"text": "5"}]}}]}',
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
