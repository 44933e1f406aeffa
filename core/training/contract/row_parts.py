"""Parts of one row: its question, answers, and what stands beside them, read under any name.

Standard library only. Collects what is wrong and what is not read; knows no row format.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from .content import Unread, read_parts
from .conversations import (
    MessageReading,
    conversation_faults,
    read_conversation,
)
from .lost_names import changes_learning
from .messages import PROMPT, ConversationPart, Fault, Message
from .row_columns import (
    Row,
    holds_something,
    is_conversation,
    label_faults,
    parse_text,
    text_faults,
    truth_of,
    wrong_kind,
)
from .stages import STAGES
from .tool_calls import Tool, read_tools, tool_names

MIN_REPEATED_CHARACTERS = 40
"""Length of a context that stands in its question by no accident."""
Text = str | list[Message]
"""Text of a row, or messages."""
MAKES_MESSAGES = ("system", "history", "tools")
"""Parts that only messages can hold. A text beside one of them becomes messages, in every row that
has the column, so that all rows of a file are of one kind."""


class ColumnNames(Protocol):
    """Names under which the columns of a row stand."""

    @property
    def columns(self) -> Mapping[str, str]:
        """Part -> name of its column, for the parts that a row must have."""

    @property
    def beside(self) -> Mapping[str, tuple[str, ...]]:
        """Part -> names of columns that may hold it, for the parts that a row may have."""


class RowParts:
    """Reader of one row."""

    def __init__(self, row: Row, names: ColumnNames, stage: str) -> None:
        self.row, self.names, self.stage = row, names, STAGES[stage]
        self.faults: list[Fault] = []
        self.unread: Unread = {}
        self.conversations: list[MessageReading] = []
        self.tools: list[Tool] = self._read_tools()

    # Required columns

    def name(self, part: str) -> str:
        """Return the name of the column that holds a part."""
        return self.names.columns[part]

    def value(self, part: str) -> Any:
        """Return a required part as it is written."""
        return self.row[self.names.columns[part]]

    def text(self, part: str) -> str:
        """Return a part that must be text."""
        value = self.value(part)
        self.faults += text_faults(value, self.name(part))
        return value if isinstance(value, str) else ""

    def label(self) -> bool:
        """Return whether the answer is wanted."""
        value = self.value("label")
        self.faults += label_faults(value, self.name("label"))
        return truth_of(value) is True

    def messages(self, part: str, piece: ConversationPart) -> list[Message]:
        """Return a part that must be a conversation."""
        return self._messages(self.value(part), self.name(part), piece)

    def text_or_messages(
        self, part: str, piece: ConversationPart, *, may_be_empty: bool = False
    ) -> Text:
        """Return a part that is text, or messages that are this piece of a conversation."""
        value, name = self.value(part), self.name(part)
        return self.read_text_or_messages(value, name, piece, may_be_empty=may_be_empty)

    def read_text_or_messages(
        self, value: Any, name: str, piece: ConversationPart, *, may_be_empty: bool = False
    ) -> Text:
        """Return a value at a place in the row as `text_or_messages` returns a part."""
        if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
            (value,) = value
        if is_conversation(value):
            return self._messages(value, name, piece)
        wanted = "text or a list of messages"
        self.faults += text_faults(value, name, wanted, may_be_empty=may_be_empty)
        return value if isinstance(value, str) else ""

    def _messages(self, value: Any, name: str, piece: ConversationPart) -> list[Message]:
        if isinstance(value, dict) and isinstance(value.get("messages"), list):
            # The input of an OpenAI preference: an object of messages and tools.
            self._name_rest(value, name)
            value, name = value["messages"], f"{name}.messages"
        conversation = read_conversation(value, name)
        offered = tool_names(self.tools)
        self.faults += conversation_faults(conversation, piece, offered)
        self.conversations.append(conversation)
        for field, matters in conversation.unread.items():
            self.leave_out(field, matters=matters)
        return conversation.messages

    def _name_rest(self, value: Mapping[str, Any], name: str) -> None:
        for key in value:
            is_read = key == "messages" or (key == "tools" and f"{name}.tools" == self._tools_place)
            if not is_read and value[key]:
                self.leave_out(f"{name}.{key}", matters=changes_learning(key, value[key]))

    # Columns beside them

    def has_beside(self, *parts: str) -> bool:
        """Return whether a row has a column for one of these parts, even an empty one."""
        return any(name in self.row for part in parts for name in self.names.beside.get(part, ()))

    def beside(self, part: str) -> tuple[Any, str]:
        """Return (value, name) of the column that holds a part; (None, "") if none holds any."""
        found = None, ""
        for name in self.names.beside.get(part, ()):
            value = self.row.get(name)
            if value and not found[1]:
                found = value, name
            elif value and value != found[0]:
                self.leave_out(name, matters=True)
        return found

    def system(self) -> str:
        """Return the system text of a row; it may be written as the parts of a message.

        A text that is JSON is such parts only if they are all read, else it is the text.
        """
        value, name = self.beside("system")
        if value is None:
            return ""
        written = parse_text(value) if isinstance(value, str) else value
        if isinstance(written, list | dict):
            unread: Unread = {}
            text = _system_of_parts(written, name, unread)
            if text is not None and not (unread and isinstance(value, str)):
                for place, matters in unread.items():
                    self.leave_out(place, matters=matters)
                return text
        self.faults += text_faults(value, name)
        return value if isinstance(value, str) else ""

    def context(self) -> str:
        """Return what stands beside a question and belongs to it: its input and its context."""
        texts = []
        value, name = self.beside("input")
        if isinstance(value, str):
            self.faults += text_faults(value, name)
            texts.append(value)
        elif value is not None and not self._is_lenient(value, name, texts):
            self.faults += wrong_kind(value, name, "text")
        value, name = self.beside("context")
        if isinstance(value, str):
            texts.append(value)
        elif value is not None:
            self._is_lenient(value, name, texts)
        return "\n\n".join(text for text in texts if text.strip())

    def _is_lenient(self, value: Any, name: str, texts: list[str]) -> bool:
        """Read a list of texts; name anything else as not read. Return False for no container."""
        if isinstance(value, list) and all(isinstance(each, str) for each in value):
            texts += value
            return True
        is_container = isinstance(value, list | dict)
        if is_container or name in self.names.beside.get("context", ()):
            self.leave_out(name, matters=is_container)
        return is_container

    def history(self) -> list[Message]:
        """Return the conversation before the question: messages, or pairs of texts."""
        value, name = self.beside("history")
        if value is None:
            return []
        turns = parse_text(value) if isinstance(value, str) else value
        if isinstance(turns, dict):
            turns = [turns]
        if turns == []:
            return []
        # Texts without their speakers could be anyone's.
        if not isinstance(turns, list) or not all(isinstance(each, list | dict) for each in turns):
            self.leave_out(name, matters=True)
            return []
        return self._messages(turns, name, PROMPT)

    def _read_tools(self) -> list[Tool]:
        value, name = self.beside("tools")
        if value is None:
            value, name = self._tools_inside()
        self._tools_place = name
        if not value or value == "[]":
            return []
        tools, faults = read_tools(value, name)
        self.faults += faults
        return tools

    def _tools_inside(self) -> tuple[Any, str]:
        """Return (tools, their place) that stand beside the messages inside a column."""
        for column in self.names.columns.values():
            inner = self.row.get(column)
            if isinstance(inner, dict) and isinstance(inner.get("messages"), list):
                tools = inner.get("tools")
                if tools is not None:
                    return tools, f"{column}.tools"
        return None, ""

    # What the parts make up

    def question(self, question: Text, *, as_messages: bool = False) -> Text:
        """Return a question with its context, after the history and the system text."""
        question = self._with_context(question, self.context())
        wants_messages = as_messages or self.has_beside(*MAKES_MESSAGES)
        if isinstance(question, str) and not wants_messages:
            return question
        if isinstance(question, str):
            question = said("user", question)
        history = self.history()
        if history and history[-1]["role"] == question[0]["role"] == "user":
            problem = "ends with the user's turn, and the question follows"
            fix = "add the answer, or remove the last turn"
            name = self.beside("history")[1]
            self.faults.append(Fault(name, "two_user_turns", problem, fix))
        return self.after_system([*history, *question])

    def _with_context(self, question: Text, context: str) -> Text:
        if not context:
            return question
        if isinstance(question, str):
            return _joined(question, context)
        for index in reversed(range(len(question))):
            message = question[index]
            if message["role"] == "user" and isinstance(message.get("content"), str):
                changed = {**message, "content": _joined(message["content"], context)}
                return [*question[:index], changed, *question[index + 1 :]]
        _value, name = self.beside("context")
        self.leave_out(name or self.beside("input")[1], matters=True)
        return question

    def after_system(self, messages: list[Message]) -> list[Message]:
        """Return messages that begin with the system text of their row."""
        system = self.system()
        if not system:
            return messages
        first = messages[0] if messages else {}
        if first.get("role") != "system" or not isinstance(first.get("content"), str):
            return [*said("system", system), *messages]
        if system.strip() in first["content"]:
            return messages
        # Most templates take one system message only.
        both = {**first, "content": f"{system}\n\n{first['content']}"}
        return [both, *messages[1:]]

    def leave_out(self, field: str, *, matters: bool = False) -> None:
        """Name a column, or a place in one, that is not read."""
        self.unread[field] = self.unread.get(field, False) or matters


def _system_of_parts(value: Any, name: str, unread: Unread) -> str | None:
    """Return a system text that is written as a message or as parts; None if it is neither."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        is_message = value[0].get("role") in ("system", "developer")
        value = value[0] if is_message else value
    for key in ("parts", "content"):
        if isinstance(value, dict) and isinstance(value.get(key), str | list | dict):
            for other in value:
                if other not in (key, "role") and holds_something(value[other]):
                    unread[f"{name}.{other}"] = changes_learning(other, value[other])
            value = value[key]
    content = read_parts(value, name, unread)
    if content is None or not content.texts:
        return None
    if content.calls or content.reasoning or content.results:
        unread[f"{name}[]"] = True
    return content.text


def said(role: str, content: str) -> list[Message]:
    """Return one message, in a list."""
    return [{"role": role, "content": content}]


def _joined(question: str, context: str) -> str:
    """Return a question followed by its context, which some files also repeat in the question."""
    is_long = len(context) >= MIN_REPEATED_CHARACTERS
    return question if is_long and context.strip() in question else f"{question}\n\n{context}"


def as_messages(text: Text, role: str) -> list[Message]:
    """Return messages as they are, and a text as one message."""
    return said(role, text) if isinstance(text, str) else text


def ends_with_answer(messages: Sequence[Message]) -> bool:
    """Return whether the assistant speaks last."""
    return bool(messages) and messages[-1]["role"] == "assistant"
