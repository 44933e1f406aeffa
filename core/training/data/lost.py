"""Parts of rows that a chat template leaves out, found by printing other words in their place."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .answers import END_OF_THOUGHT, NOTHING_PRINTED, UnclearAnswer
from .chat import Conversation, Message, Messages, Tools, conversations_of

PrintBeside = Callable[[Messages, Tools], str]
"""Return messages as text, beside tools."""
THOUGHTS = ("reasoning_content", "thinking", "reasoning")
"""Keys of a message that hold what an assistant thinks before it answers."""
MAX_REMEMBERED = 4096


@dataclass(frozen=True)
class Lost:
    """Parts of a conversation that a chat template does not print."""

    fields: tuple[str, ...] = ()
    """Roles and keys, such as `tool` or `tool_calls`."""
    silent_answers: tuple[int, ...] = ()
    """Index of each answer of which the template prints nothing: only calls, which are lost."""

    def require_answers(self) -> None:
        """Raise UnclearAnswer if the model would learn to answer with nothing."""
        for index in self.silent_answers:
            raise UnclearAnswer(index, NOTHING_PRINTED.format(lost="its tool calls"))


@dataclass(frozen=True)
class LostFinder:
    """Finder of what a chat template does not print. Remembers conversations of the same form."""

    print_beside: PrintBeside
    _known: dict[object, Lost] = field(default_factory=dict)

    def find(self, conversation: Conversation) -> Lost:
        """Return what the chat template does not print of a conversation."""
        form = _form_of(conversation)
        if form not in self._known:
            if len(self._known) == MAX_REMEMBERED:
                self._known.clear()
            self._known[form] = self._find(conversation)
        return self._known[form]

    def fields_of(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        """Return what the chat template does not print of a row."""
        found = [self.find(each).fields for each in conversations_of(row)]
        return tuple(dict.fromkeys(name for fields in found for name in fields))

    def _find(self, conversation: Conversation) -> Lost:
        altered = Alteration(conversation)
        try:
            printed = self.print_beside(altered.messages, altered.tools)
        except Exception:  # what it does with other words is not known
            return Lost()
        missing = {word for word in altered.fields if word not in printed}
        fields = dict.fromkeys(altered.fields[word] for word in altered.fields if word in missing)
        silent = (index for index, words in altered.calls.items() if missing.issuperset(words))
        return Lost(tuple(fields), tuple(silent))


class Alteration:
    """Conversation with another word in place of each thing that a template may leave out."""

    def __init__(self, conversation: Conversation) -> None:
        self.fields: dict[str, str] = {}
        """Word -> what it stands for: a role or a key."""
        self.calls: dict[int, list[str]] = {}
        """Index of each answer that is nothing but calls -> their words."""
        self.tools = [self._tool(tool) for tool in conversation.tools or ()]
        self.messages = []
        for index, message in enumerate(conversation.messages):
            altered = self._message(message)
            if altered.get("tool_calls") and not str(altered.get("content") or "").strip():
                calls = altered["tool_calls"]
                self.calls[index] = [call["function"]["name"] for call in calls]
            self.messages.append(altered)

    def _word(self, name: str) -> str:
        word = f"qzx{len(self.fields)}xzq"
        self.fields[word] = name
        return word

    def _tool(self, tool: Mapping[str, Any]) -> dict[str, Any]:
        if isinstance(tool.get("function"), dict):
            return {**tool, "function": self._tool(tool["function"])}
        return {**tool, "name": self._word("tools")}

    def _message(self, message: Message) -> dict[str, Any]:
        altered = dict(message)
        role, content = message["role"], message.get("content")
        if isinstance(content, str) and content.strip():
            altered["content"] = self._content(content, role)
        if message.get("tool_calls"):
            altered["tool_calls"] = [self._call(call) for call in message["tool_calls"]]
        for key in (*THOUGHTS, "name"):
            if _is_text(message.get(key)):
                altered[key] = self._word(key)
        return altered

    def _content(self, content: str, role: str) -> str:
        if role != "assistant":
            return self._word(role)
        if END_OF_THOUGHT not in content:
            return self._word("content")
        thought = f"<think>\n{self._word('thinking')}\n{END_OF_THOUGHT}"
        has_answer = content.rpartition(END_OF_THOUGHT)[2].strip()
        return f"{thought}\n\n{self._word('content')}" if has_answer else thought

    def _call(self, call: Mapping[str, Any]) -> dict[str, Any]:
        return {**call, "function": {**call["function"], "name": self._word("tool_calls")}}


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _form_of(conversation: Conversation) -> object:
    """Return what decides what a template leaves out: roles, keys and numbers, but no texts."""
    return tuple(form_of_message(message) for message in conversation.messages), len(
        conversation.tools or ()
    )


def form_of_message(message: Message) -> tuple[object, ...]:
    """Return what decides how a template prints a message: its role and keys, but no texts."""
    content = message.get("content")
    is_thought = isinstance(content, str) and END_OF_THOUGHT in content
    keys = (key for key in ("content", *THOUGHTS, "name") if _is_text(message.get(key)))
    return message["role"], is_thought, len(message.get("tool_calls") or ()), *keys
