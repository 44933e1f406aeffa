"""The ways of writing a row, and how each becomes TRL's columns. Knows nothing of files and of tokens.

tests/test_stages.py holds the table against core/dataset: what passes the check is what is read here.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

Row = dict[str, Any]
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
ANSWERS = ("answer", "solution", "ground_truth")
"""Columns that may stand beside a prompt and hold the right answer to it, for rewards."""
PREFERENCE, PROMPTS = ("preference",), ("prompt-only", "prompt-completion")
ACCEPTED_TYPES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "sft": ("language modeling", "prompt-completion"),
        "cpt": ("language modeling",),
        "reward": PREFERENCE,
        "dpo": PREFERENCE,
        "kto": ("unpaired preference", "preference"),
        "orpo": PREFERENCE,
        "cpo": PREFERENCE,
        "grpo": PROMPTS,
        "rloo": PROMPTS,
        "ppo": PROMPTS,
    }
)
"""Stage -> the dataset types that it reads, as TRL names them; ppo is shown, though not trained."""


class BadRow(ValueError):
    """What is wrong with one row, in a few words."""


@dataclass(frozen=True)
class Kind:
    """One way of writing rows: the fields that give it away, and how it becomes TRL's columns."""

    dataset_type: str
    columns: tuple[str, ...]
    convert: Callable[[Mapping[str, Any]], Row]
    takes_tools: bool = False


def parse(line: bytes, first: Row | None = None, stage: str = "sft") -> Row:
    """A line as a row in TRL's columns, of the same kind as the first row. Raises BadRow."""
    fields = _object(line)
    kind = _kind_of(fields, stage)
    row = kind.convert(fields)
    if "prompt-only" in ACCEPTED_TYPES[stage]:
        row = {"prompt": row["prompt"], "answer": _right_answer(row, fields)}
    if first and form(row) != form(first):
        raise BadRow("is of another kind than the first row")
    if fields.get("tools") and "prompt-only" in ACCEPTED_TYPES[stage]:
        raise BadRow(f"has tools, which {stage} cannot offer while it draws answers")
    if kind.takes_tools and "answer" not in row:
        row["tools"] = json.dumps(fields["tools"]) if fields.get("tools") else None
    return row


def form(row: Row) -> dict[str, type]:
    """What must be the same in every row: the columns, and whether they hold text or messages."""
    return {name: type(value) for name, value in row.items() if name not in ("tools", "answer")}


def unpaired(row: Row) -> list[Row]:
    """The two answers of a preference, each by itself with its verdict."""
    rest = {name: value for name, value in row.items() if name not in ("chosen", "rejected")}
    return [
        rest | {"completion": row[name], "label": name == "chosen"}
        for name in ("chosen", "rejected")
    ]


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


def _kind_of(fields: Mapping[str, Any], stage: str) -> Kind:
    """The first kind that a row has the columns of and the stage can train on."""
    fitting = [kind for kind in KINDS if all(column in fields for column in kind.columns)]
    wanted = ACCEPTED_TYPES[stage]
    if not fitting:
        known = ", ".join(" + ".join(kind.columns) for kind in KINDS if kind.dataset_type in wanted)
        raise BadRow(f"has {', '.join(fields) or 'no fields'}, but one of these is needed: {known}")
    accepted = next((kind for kind in fitting if kind.dataset_type in wanted), None)
    if accepted is None:
        found = fitting[0].dataset_type
        stages = ", ".join(name for name, types in ACCEPTED_TYPES.items() if found in types)
        raise BadRow(
            f"is {found} data, which fits the stages {stages}; {stage} needs {' or '.join(wanted)} data"
        )
    return accepted


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
    instructions = (
        _said("system", _text(fields["system"], "system")) if fields.get("system") else []
    )
    messages = [
        {"role": SHAREGPT_ROLES[turn["from"]], "content": turn.get("value")} for turn in turns
    ]
    return _conversation({"messages": instructions + messages})


def _preference(fields: Mapping[str, Any]) -> Row:
    values = {name: fields[name] for name in ("prompt", "chosen", "rejected")}
    if len({type(value) for value in values.values()}) > 1:
        raise BadRow("has text beside messages")
    if values["chosen"] == values["rejected"]:
        raise BadRow("chosen and rejected are the same answer")
    answers = {name: _text_or_messages(values[name], name) for name in ("chosen", "rejected")}
    return {"prompt": _prompt(values["prompt"])} | answers


def _preference_without_prompt(fields: Mapping[str, Any]) -> Row:
    """The prompt is what both begin with."""
    chosen, rejected = (_text_or_messages(fields[name], name) for name in ("chosen", "rejected"))
    if type(chosen) is not type(rejected):
        raise BadRow("has text beside messages")
    end = _length_shared(chosen, rejected)
    if isinstance(chosen, list) and not end:
        raise BadRow("chosen and rejected do not begin with the same message")
    return _preference({"prompt": chosen[:end], "chosen": chosen[end:], "rejected": rejected[end:]})


def _length_shared(chosen: Sequence[Any], rejected: Sequence[Any]) -> int:
    """How much two answers begin with alike, a last space aside, as TRL counts it; something of both is left."""
    last = min(len(chosen), len(rejected)) - 1
    end = next((index for index in range(last) if chosen[index] != rejected[index]), last)
    return end - 1 if end and chosen[end - 1] == " " else end


def _judged(fields: Mapping[str, Any]) -> Row:
    if not isinstance(fields["label"], bool):
        raise BadRow("label is not true or false")
    return _prompt_completion(fields) | {"label": fields["label"]}


def _prompt_completion(fields: Mapping[str, Any]) -> Row:
    prompt, completion = fields["prompt"], fields["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        return {"prompt": prompt, "completion": _text(completion, "completion")}
    return {
        "prompt": _messages(_said("user", prompt) if isinstance(prompt, str) else prompt, "prompt"),
        "completion": _messages(
            _said("assistant", completion) if isinstance(completion, str) else completion,
            "completion",
        ),
    }


def _instruction(fields: Mapping[str, Any]) -> Row:
    question = _text(fields["instruction"], "instruction")
    if context := fields.get("input"):
        question += "\n\n" + _text(context, "input")
    return _exchange(question, _text(fields["output"], "output"), fields.get("system"))


def _question(fields: Mapping[str, Any]) -> Row:
    return _exchange(
        _text(fields["question"], "question"),
        _text(fields["answer"], "answer"),
        fields.get("system"),
    )


def _plain_text(fields: Mapping[str, Any]) -> Row:
    return {"text": _text(fields["text"], "text")}


def _prompt_only(fields: Mapping[str, Any]) -> Row:
    return {"prompt": _text_or_messages(fields["prompt"], "prompt")}


def _exchange(question: str, answer: str, system: object) -> Row:
    """One question and its answer as messages, for the model's chat template."""
    instructions = _said("system", _text(system, "system")) if system else []
    return {
        "prompt": instructions + _said("user", question),
        "completion": _said("assistant", answer),
    }


def _right_answer(row: Row, fields: Mapping[str, Any]) -> str | None:
    """The answer that a row holds beside its prompt, as text; None if it holds none."""
    completion = row.get("completion")
    if isinstance(completion, list):
        return str(completion[-1].get("content") or "")
    value = next((fields[name] for name in ANSWERS if fields.get(name) is not None), completion)
    return value if isinstance(value, str | None) else json.dumps(value)


def _said(role: str, content: str) -> list[Row]:
    return [{"role": role, "content": content}]


def _prompt(value: object) -> str | list[Row]:
    """A prompt before an answer; as text it may be empty."""
    return value if isinstance(value, str) else _messages(value, "prompt")


def _text_or_messages(value: object, name: str) -> str | list[Row]:
    return _messages(value, name) if isinstance(value, list) else _text(value, name)


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


KINDS = (
    Kind("language modeling", ("messages",), _conversation, takes_tools=True),
    Kind("language modeling", ("conversations",), _turns, takes_tools=True),
    Kind("preference", ("prompt", "chosen", "rejected"), _preference, takes_tools=True),
    Kind("preference", ("chosen", "rejected"), _preference_without_prompt, takes_tools=True),
    Kind("unpaired preference", ("prompt", "completion", "label"), _judged, takes_tools=True),
    Kind("prompt-completion", ("prompt", "completion"), _prompt_completion, takes_tools=True),
    Kind("prompt-completion", ("instruction", "output"), _instruction),
    Kind("prompt-completion", ("question", "answer"), _question),
    Kind("language modeling", ("text",), _plain_text),
    Kind("prompt-only", ("prompt",), _prompt_only),
)
"""In order of precedence, as in core/dataset."""
