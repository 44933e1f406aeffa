"""Proof that a chat template prints each answer once, as an answer, and that it alone counts.

Other words are put in place of the texts of a row: where they stand afterwards shows what the
template does with any text. Never imports torch.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from ..contract.row_columns import Row
from ..contract.row_reader import BadRow
from .answers import END_OF_THOUGHT, OTHER_TEXT
from .chat import ChatTemplate, Message
from .lost import MAX_REMEMBERED, THOUGHTS, form_of_message

SHARED_COLUMNS = ("messages", "prompt", "completion")
ASKING_ROLES = ("system", "developer", "user")
MAX_WORDS_BESIDE = 3
"""Words beside an answer that may count with it, such as the name of a channel."""
MAX_CHARACTERS_BESIDE = 24
MAX_SHOWN = 60
CLOSING = re.compile(r"</\w+>|\[/\w+\]")
"""Ends of turns that repeat the name of a role."""
USER_NAMES = re.compile(r"(?<![A-Za-z])(user|human)(?![A-Za-z])", re.IGNORECASE)
ASSISTANT_NAMES = re.compile(
    r"(?<![A-Za-z])(assistant|model|gpt|chatbot|bot|ai)(?![A-Za-z])", re.IGNORECASE
)
WORDS = re.compile(r"\w+|[^\w\s]")


class Encoded(Protocol):
    """Text in tokens, with the place of each."""

    @property
    def loss_mask(self) -> Sequence[bool]: ...
    @property
    def text(self) -> str: ...
    @property
    def spans(self) -> Sequence[tuple[int, int]]: ...


class Word(NamedTuple):
    """Word that stands for the text of one message."""

    text: str
    name: str
    """Place of the message in its row, with its role."""
    role: str
    is_learnt: bool
    is_asked: bool
    """True for a text of somebody else that must not count."""
    is_alone: bool
    """False for an answer with which other texts count: a thought, calls, or other messages."""


ReadWithText = Callable[[Row], Sequence[Encoded]]


@dataclass(frozen=True)
class HonestyCheck:
    """Check of what a template does with rows of one form. Remembers the forms that it has seen."""

    template: ChatTemplate
    read: ReadWithText
    """Return the texts of a row in tokens: the chosen one first."""
    counts_answers: tuple[bool, bool]
    """Whether nothing but answers counts: in the first text of a row, and in the second."""
    _known: dict[object, str] = field(default_factory=dict)

    def require(self, row: Mapping[str, Any]) -> None:
        """Raise BadRow if the template does not print the answers of a row as they are."""
        form = _form_of(row)
        if form is None:
            return
        if form not in self._known:
            if len(self._known) == MAX_REMEMBERED:
                self._known.clear()
            altered, words = _altered(row)
            try:
                texts = self.read(altered)
            except Exception as error:  # a template may raise anything
                self._require_refused(row, str(error))
                return  # other rows of this form may be read
            self._known[form] = next(self._faults(texts, words), "")
        if self._known[form]:
            raise BadRow(self._known[form])

    def _require_refused(self, row: Mapping[str, Any], reason: str) -> None:
        """Raise BadRow for a row that is read although it is refused with other words in it.

        Then nothing proves what the template does with its answers.
        """
        try:
            self.read(dict(row))
        except Exception:  # the caller reads it again, and says what is wrong
            return
        raise BadRow(reason)

    def _faults(
        self, texts: Sequence[Encoded], words: Mapping[str, Sequence[Word]]
    ) -> Iterator[str]:
        for index, encoded in enumerate(texts):
            column = "rejected" if index else "chosen"
            shown = [*words.get("shared", ()), *words.get(column, ())]
            yield from _faults_of_printing(encoded.text, shown)
            if self.counts_answers[index]:
                yield from self._faults_of_counting(encoded, shown)

    def _faults_of_counting(self, encoded: Encoded, words: Sequence[Word]) -> Iterator[str]:
        runs = list(_counted_runs(encoded))
        for word in words:
            begin = encoded.text.find(word.text)
            if begin < 0:
                continue
            end = begin + len(word.text)
            is_touched = any(first < end and begin < last for first, last in runs)
            is_inside = any(first <= begin and end <= last for first, last in runs)
            if word.is_asked and is_touched:
                yield f"{word.name}: it counts as an answer, by the marks of the chat template"
            elif word.is_learnt and not is_inside:
                yield f"{word.name}: the marks of the chat template leave it out, or a part of it"
        learnt = [word for word in words if word.is_learnt]
        for first, last in runs:
            yield from self._faults_beside(encoded.text[first:last], learnt)

    def _faults_beside(self, text: str, learnt: Sequence[Word]) -> Iterator[str]:
        """Yield the fault of a text that counts, if it holds more than an answer."""
        inside = [word for word in learnt if word.text in text]
        if not inside or not all(word.is_alone for word in inside):
            return
        beside = text
        for word in inside:
            beside = beside.replace(word.text, " ")
        beside = " ".join(self.template.markers.sub(" ", beside).split())
        num_words = len(WORDS.findall(beside))
        allowed = len(inside)
        if num_words > MAX_WORDS_BESIDE * allowed or len(beside) > MAX_CHARACTERS_BESIDE * allowed:
            shown = repr(beside[:MAX_SHOWN])
            yield f"{inside[0].name}: the chat template adds a text to it that counts too: {shown}"


def _faults_of_printing(text: str, words: Sequence[Word]) -> Iterator[str]:
    before: Word | None = None
    for word in words:
        if word.role == "assistant":
            times = text.count(word.text)
            if times > 1:
                yield f"{word.name}: the chat template prints it more than once"
            if times == 0 and word.is_learnt:
                yield f"{word.name}: {OTHER_TEXT}"
            if before and before.role == "user" and _are_swapped(text, before.text, word.text):
                yield f"{word.name}: the chat template prints it as the user's message"
        before = word


def _are_swapped(text: str, question: str, answer: str) -> bool:
    """Return whether what stands between a question and its answer announces the user."""
    begin, end = text.find(question) + len(question), text.find(answer)
    between = CLOSING.sub(" ", text[begin:end])
    names_user = USER_NAMES.search(between) is not None
    return names_user and ASSISTANT_NAMES.search(between) is None


def _counted_runs(encoded: Encoded) -> Iterator[tuple[int, int]]:
    """Yield (begin, end) of each part of the text whose tokens all count."""
    run: tuple[int, int] | None = None
    for (begin, end), counts in zip(encoded.spans, encoded.loss_mask, strict=True):
        if counts:
            run = (run[0] if run else begin, end)
        elif run:
            yield run
            run = None
    if run:
        yield run


def _form_of(row: Mapping[str, Any]) -> object | None:
    """Return what decides how a template prints a row; None for a row of plain texts."""
    columns = [name for name, value in row.items() if _is_conversation(value)]
    if not columns:
        return None
    forms = tuple((name, tuple(map(form_of_message, row[name]))) for name in columns)
    return forms, tuple(row.get("trained_messages") or ()), bool(row.get("tools"))


def _is_conversation(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)


def _altered(row: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, list[Word]]]:
    """Return a row with other words as texts, and these: shared by its texts, and of each."""
    altered: dict[str, Any] = dict(row)
    words: dict[str, list[Word]] = {}
    for column in (*SHARED_COLUMNS, "chosen", "rejected"):
        if not _is_conversation(row.get(column)):
            continue
        group = words.setdefault("shared" if column in SHARED_COLUMNS else column, [])
        flags = row.get("trained_messages") if column in ("messages", "completion") else None
        altered[column] = []
        are_alone = _are_plain_answers(row[column], may_be_asked=column == "messages")
        for index, message in enumerate(row[column]):
            role, text = message["role"], f"Qzx{column.title()}{index}HoldsNoRowOfThis{index}xzQ"
            changed = _with_text(message, text)
            altered[column].append(changed)
            if changed is not message:
                is_learnt = role == "assistant" and column != "prompt"
                is_learnt = is_learnt and (not flags or bool(flags[index]))
                is_asked = role in ASKING_ROLES and column in ("messages", "prompt")
                name = f"{column}[{index}] ({role})"
                group.append(Word(text, name, role, is_learnt, is_asked, are_alone))
    return altered, words


def _are_plain_answers(messages: Sequence[Message], *, may_be_asked: bool) -> bool:
    """Return whether messages are answers of nothing but text, with or without what asks."""
    answers = [message for message in messages if message["role"] == "assistant"]
    if not may_be_asked and len(answers) < len(messages):
        return False
    for answer in answers:
        has_text = isinstance(answer.get("content"), str) and answer["content"].strip()
        if not has_text or END_OF_THOUGHT in answer["content"]:
            return False
        if any(answer.get(key) for key in (*THOUGHTS, "tool_calls")):
            return False
    return True


def _with_text(message: Message, text: str) -> Message:
    """Return a message with another text; as it is, if it has none or is of another role."""
    content = message.get("content")
    if not isinstance(content, str) or not content.strip():
        return message
    if message["role"] not in (*ASKING_ROLES, "assistant"):
        return message
    thought, mark, answer = content.rpartition(END_OF_THOUGHT)
    if not mark or message["role"] != "assistant":
        return {**message, "content": text}
    if not answer.strip():
        return message
    return {**message, "content": f"{thought}{mark}\n\n{text}"}
