"""Conversations as people write them, read as messages. Standard library only.

Reads turns with role and content, from and value, contents and parts, pairs of question and answer,
and lists of these as JSON text. What is not read is named.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .content import Content, Unread, read_parts
from .lost_names import changes_learning
from .messages import (
    ANSWER_KEYS,
    QUESTION_KEYS,
    ROLE_KEYS,
    ROLE_NAMES,
    ROLES,
    ConversationPart,
    Fault,
    Message,
    call_order_faults,
    json_type,
    order_faults,
    shown,
)
from .row_columns import holds_something, is_media, parse_text, truth_of
from .tool_calls import are_plain_calls, read_calls

CONTENT_KEYS = ("content", "value", "parts", "text", "message")
"""Keys of a turn under which its text may stand, the likelier first."""
CALL_ROLES = frozenset(("function_call", "function_calls", "tool_call", "tool_calls"))
"""Roles of ShareGPT turns whose text is a call of a tool."""
# fmt: off
MASK_KEYS = (
    "weight", "train", "training", "loss", "loss_weight", "loss_scale", "output_with_loss",
)
# fmt: on
"""Keys of a turn that say whether its answer counts: of OpenAI, Axolotl, ms-swift, LLaMA-Factory
and XTuner."""
MASK_WORD = re.compile(r"(?:^|_)(?:weights?|train|training|loss|mask|masked)(?:_|$)")
"""Word in any other key of a turn that may say so."""
KEPT_KEYS = ("name", "tool_call_id", "reasoning_content", "thinking", "tool_plan")
"""Keys of a message that chat templates read, beside role, content and tool_calls."""
CANONICAL_KEYS = frozenset(("role", "content", "tool_calls", *KEPT_KEYS))
TURN_KEYS = frozenset((*KEPT_KEYS, *MASK_KEYS, "tool_calls", "function_call", "reasoning"))
"""Keys of a turn that are read, beside those of its role and its text."""
LOST_KEYS = frozenset(("refusal", "documents", "context", "file", "files", "attachments"))
"""Keys of a message without which the model would learn something else."""
VERDICT_KEYS = frozenset(("label", "thumbs_up", "is_good"))
"""Keys of a message that may say that an answer is not wanted."""
MESSAGE = 'write {"role": "user", "content": "..."}'
TURN = 'write {"from": "human", "value": "..."}'


@dataclass(slots=True)
class MessageReading:
    """Messages of one column, and what was found while they were read."""

    column: str
    messages: list[Message] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    """Place of each message in the row, such as `messages[0].input`; empty if each has its own."""
    is_masked: list[bool] = field(default_factory=list)
    """For each message, whether the file says that it does not count; empty if none is masked."""
    mask_key: str = ""
    """First key that said so."""
    may_be_empty: list[bool] = field(default_factory=list)
    """For each message, whether it holds something else than text, such as a picture; or empty."""
    faults: list[Fault] = field(default_factory=list)
    unread: Unread = field(default_factory=dict)

    def add(
        self, message: Message, place: str, *, is_masked: bool = False, may_be_empty: bool = False
    ) -> None:
        """Add one message that was read from a place."""
        self.messages.append(message)
        self.places.append(place)
        self.is_masked.append(is_masked)
        self.may_be_empty.append(may_be_empty)

    def leave_out(self, key: str, *, matters: bool) -> None:
        """Name a key of a turn that is not read."""
        name = f"{self.column}[].{key}"
        self.unread[name] = self.unread.get(name, False) or matters

    def place(self, index: int) -> str:
        """Return the place of a message in its row."""
        return self.places[index] if self.places else f"{self.column}[{index}]"


def read_conversation(value: Any, column: str) -> MessageReading:
    """Return the messages of a value that is a list of turns, one turn, or either as JSON text."""
    found = MessageReading(column)
    turns = parse_text(value) if isinstance(value, str) else value
    if isinstance(turns, dict):
        turns = _turns_of(turns)
    if not isinstance(turns, list):
        message, fix = f"is {json_type(value)}, not a list of messages", "give a list of messages"
        found.faults.append(Fault(column, "wrong_kind", message, fix))
        return found
    if is_canonical(turns):
        found.messages = turns
        return found
    if _are_roles_and_texts(turns):
        turns = [{"role": role, "content": content} for role, content in turns]
    for index, turn in enumerate(turns):
        _read_turn(turn, f"{column}[{index}]", found)
    return found


def _turns_of(value: dict[str, Any]) -> list[Any]:
    """Return one turn as a list; or the turns of an object of lists, as tables write them."""
    role_key = _first_key(value, ROLE_KEYS)
    roles = value[role_key] if role_key else None
    if not isinstance(roles, list):
        return [value]
    turns: list[dict[str, Any]] = [{} for _role in roles]
    for key, column in value.items():
        if not isinstance(column, list) or len(column) != len(roles):
            return [value]
        for turn, each in zip(turns, column, strict=True):
            turn[key] = each
    return turns


def conversation_faults(
    conversation: MessageReading, part: ConversationPart, offered: frozenset[str]
) -> Sequence[Fault]:
    """Return what is wrong with a conversation in a row that offers these tools."""
    if conversation.faults:
        return conversation.faults
    messages, column = conversation.messages, conversation.column
    if not messages:
        return (Fault(column, "empty", "has no messages", part.empty_fix),)
    faults = []
    has_calls = False
    for index, message in enumerate(messages):
        content = message.get("content")
        has_calls = has_calls or "tool_calls" in message
        if (content and not content.isspace()) or message.get("tool_calls"):
            continue
        fault = _message_fault(message, conversation.place(index))
        has_other = bool(conversation.may_be_empty) and conversation.may_be_empty[index]
        if fault and not (fault.code == "empty" and has_other):
            faults.append(fault)
    if faults:
        return faults
    roles = tuple([message["role"] for message in messages])
    faults += order_faults(roles, column, part)
    if has_calls or "tool" in roles:
        faults += call_order_faults(messages, conversation.place, part, offered)
    return faults


def _are_roles_and_texts(turns: list[Any]) -> bool:
    """Return whether all turns are lists of a role and a text, as LangChain writes them.

    Lists of two texts are questions and answers otherwise.
    """
    for turn in turns:
        if not isinstance(turn, list) or len(turn) != 2 or _role_of(turn[0]) is None:
            return False
    return bool(turns)


def _role_of(written: Any) -> str | None:
    """Return the role that a name in a file stands for; None if it is no name of a role."""
    name = _role_name(written)
    return "assistant" if name in CALL_ROLES else ROLE_NAMES.get(name)


def _role_name(written: Any) -> str:
    """Return the name of a role as the tables write it: `Tool-Call` is tool_call."""
    if not isinstance(written, str):
        return ""
    return written.strip().lower().replace("-", "_").replace(" ", "_")


def is_canonical(turns: list[Any]) -> bool:
    """Return whether all turns are messages as they are trained on, so that nothing is to do."""
    for turn in turns:
        if type(turn) is not dict or not CANONICAL_KEYS.issuperset(turn):
            return False
        if turn.get("role") not in ROLES or type(turn.get("content", "")) is not str:
            return False
        if "tool_calls" in turn and not are_plain_calls(turn["tool_calls"]):
            return False
    return True


def _message_fault(message: Message, place: str) -> Fault | None:
    """Return what is wrong with a message that holds no text and no call."""
    content, role = message.get("content"), message["role"]
    if "content" not in message or content is None:
        text, fix = "has no content", "give the text as a string"
        if role == "assistant":
            text, fix = "has neither content nor tool_calls", "give the answer or the call"
        return Fault(f"{place}.content", "wrong_kind", text, fix)
    if role != "system":
        text = "an empty answer" if role == "assistant" else "is empty"
        return Fault(f"{place}.content", "empty", text, "fill it in, or drop the row")
    return None


def _read_turn(turn: Any, place: str, found: MessageReading) -> None:
    if isinstance(turn, list) and len(turn) == 2:  # a pair, as in the history of Qwen
        turn = {"user": turn[0], "assistant": turn[1]}
    if not isinstance(turn, dict):
        found.faults.append(Fault(place, "not_message", "is not a message", MESSAGE))
        return
    role_key = _first_key(turn, ROLE_KEYS)
    if role_key is not None:
        _read_message(turn, role_key, place, found)
    elif _first_key(turn, (*QUESTION_KEYS, *ANSWER_KEYS)) is not None:
        _read_pair(turn, place, found)
    else:
        fix = TURN if "value" in turn else MESSAGE
        found.faults.append(Fault(place, "not_message", "is not a message", fix))


def _read_pair(turn: Mapping[str, Any], place: str, found: MessageReading) -> None:
    """Read {"human": ..., "assistant": ...} or {"system": ..., "input": ..., "output": ...}."""
    question, answer = _first_key(turn, QUESTION_KEYS), _first_key(turn, ANSWER_KEYS)
    is_masked = _read_mask(turn, "assistant", found)
    for key, role in (("system", "system"), (question, "user"), (answer, "assistant")):
        if key is None or turn.get(key) in (None, ""):
            continue
        if not isinstance(turn[key], str):
            problem = f"is {json_type(turn[key])}, not text"
            fault = Fault(f"{place}.{key}", "wrong_kind", problem, "give the text as a string")
            found.faults.append(fault)
            continue
        message: Message = {"role": role, "content": turn[key]}
        found.add(message, f"{place}.{key}", is_masked=is_masked and role == "assistant")
    for key in turn:
        if key not in ("system", question, answer, *MASK_KEYS):
            _name_unread(key, turn[key], found)


def _read_message(
    turn: Mapping[str, Any], role_key: str, place: str, found: MessageReading
) -> None:
    written = turn[role_key]
    name, role = _role_name(written), _role_of(written)
    if role is None:
        fix = f"use {', '.join(ROLES)}"
        problem = f"{shown(written)} is not a role"
        found.faults.append(Fault(f"{place}.{role_key}", "unknown_role", problem, fix))
        return
    content_key = _first_key(turn, CONTENT_KEYS)
    content = _read_content(turn, content_key, role, place, found)
    if content is None:
        return
    message: Message = {"role": role}
    if content_key is not None:
        message["content"] = None if turn[content_key] is None else content.text
    if name in CALL_ROLES:
        # The text of such a turn is nothing but the call.
        content.calls.insert(0, content.text)
        message["content"] = ""
    _add_calls(message, turn, content, place, found)
    _add_kept_keys(message, turn, content)
    for key, value in turn.items():
        if key not in (role_key, content_key) and key not in TURN_KEYS:
            _name_unread(key, value, found)
    is_masked = _read_mask(turn, role, found)
    for result in content.results:
        found.add(_tool_message(result), place)
    if content.results and message == {"role": role, "content": ""}:
        return  # the message held answers of tools only
    found.add(message, place, is_masked=is_masked, may_be_empty=content.has_other)


def _read_content(
    turn: Mapping[str, Any], key: str | None, role: str, place: str, found: MessageReading
) -> Content | None:
    value = turn[key] if key is not None else None
    if value is None:
        return Content()
    if isinstance(value, str):
        return Content([value])
    if isinstance(value, dict) and isinstance(value.get("parts"), list):
        value = value["parts"]  # as in exports of ChatGPT
    content = None
    if isinstance(value, list | dict):
        unread: Unread = {}
        content = read_parts(value, f"{found.column}[].{key}", unread)
        if role == "tool" and _is_data(content, unread):
            return Content([json.dumps(value, ensure_ascii=False)])
        found.unread.update(unread)
    if content is None:
        message = f"is {json_type(value)}, not text"
        fix = "give the text as a string"
        found.faults.append(Fault(f"{place}.{key}", "wrong_kind", message, fix))
    return content


def _is_data(content: Content | None, unread: Unread) -> bool:
    """Return whether the answer of a tool is an object of its own, and no parts of a message."""
    if content is None:
        return True
    return content.has_other and not any(map(is_media, unread))


def _add_calls(
    message: Message, turn: Mapping[str, Any], content: Content, place: str, found: MessageReading
) -> None:
    written: list[tuple[Any, str]] = [(call, "content") for call in content.calls]
    for key in ("function_call", "tool_calls"):
        if turn.get(key):
            written.append((turn[key], key))
    calls = []
    for value, key in written:
        some, faults = read_calls(value, f"{place}.{key}")
        calls += some
        found.faults += faults
    if calls:
        message["tool_calls"] = calls


def _add_kept_keys(message: Message, turn: Mapping[str, Any], content: Content) -> None:
    for key in KEPT_KEYS:
        if turn.get(key) is not None:
            message[key] = turn[key]
    thoughts = list(content.reasoning)
    if isinstance(turn.get("reasoning"), str):
        thoughts.append(turn["reasoning"])
    if any(thoughts) and "reasoning_content" not in message:
        message["reasoning_content"] = "\n\n".join(thoughts)


def _tool_message(result: Any) -> Message:
    message: Message = {"role": "tool", "content": result.text}
    if result.call_id:
        message["tool_call_id"] = result.call_id
    if result.name:
        message["name"] = result.name
    return message


def _read_mask(turn: Mapping[str, Any], role: str, found: MessageReading) -> bool:
    """Return whether a turn does not count, as one of its keys says."""
    is_masked = False
    for key in MASK_KEYS:
        value = turn.get(key)
        if value is None:
            continue
        counts = truth_of(value)
        if counts is False:
            is_masked = True
            if role == "assistant" and not found.mask_key:
                found.mask_key = key
        elif counts is None or role != "assistant":
            # A share of an answer cannot count, nor can a question.
            found.leave_out(key, matters=True)
    return is_masked and role == "assistant"


def _name_unread(key: str, value: Any, found: MessageReading) -> None:
    if not holds_something(value):
        return
    # A verdict on an answer says what must not be learnt; attributes of it, as in NeMo, do not.
    is_verdict = key in VERDICT_KEYS and truth_of(value) is not None
    is_lost = key in LOST_KEYS or key in CONTENT_KEYS or MASK_WORD.search(key.lower()) is not None
    if key not in VERDICT_KEYS:
        is_lost = is_lost or changes_learning(key, value)
    found.leave_out(key, matters=is_verdict or is_lost)


def _first_key(fields: Mapping[str, Any], names: Sequence[str]) -> str | None:
    for name in names:
        if name in fields:
            return name
    return None


def texts_of(messages: Sequence[Message]) -> Iterator[str]:
    """Yield the texts of messages."""
    for message in messages:
        if isinstance(message.get("content"), str):
            yield message["content"]
