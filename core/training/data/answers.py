"""Places of the answers in a printed conversation, for chat templates that do not mark them.

An answer begins where the text ends that a template prints to ask for it. A place that cannot be
proved is an error, so that no other text is ever taken for an answer.
"""

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..contract.row_reader import BadRow
from .chat import PLACEHOLDER, ChatTemplate, Message, Messages, Print, Tools, length_shared

END_OF_THOUGHT = "</think>"
LONGEST_MARKER = 100
"""Characters."""
NOTHING_PRINTED = (
    "the chat template does not print {lost}, so the model would learn to answer with nothing"
)
OTHER_TEXT = "the chat template prints another text in its place"
LONG_ANSWER = 20
"""Characters of an answer that stands nowhere else by chance."""
MAX_PLACES = 50
"""Places of a text in another that are looked at."""


class Span(NamedTuple):
    """Part of a text, from `begin` up to `end`, excluded."""

    begin: int
    end: int


class Turn(NamedTuple):
    """Conversation that ends with an answer, as the model sees and continues it."""

    text: str
    begin: int
    """Place where the answer begins."""


class UnclearAnswer(BadRow):
    """Raised for an answer that is not learnt, because its place or its end cannot be proved."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(f"message {index}: {reason}")
        self.index, self.reason = index, reason


@dataclass(frozen=True)
class AnswerFinder:
    """Finder of answers in what a chat template prints beside some tools."""

    template: ChatTemplate
    tools: Tools = None

    def find(
        self, messages: Messages, indices: Container[int] | None = None
    ) -> tuple[str, Mapping[int, Span]]:
        """Return (the printed conversation, index of each answer -> its place).

        `indices` limits which answers are looked for. A place holds an answer as the template
        prints it, with its end-of-turn token, without white space behind that. Raises
        UnclearAnswer, and what the chat template raises.
        """
        last = self.turn(messages)
        spans: dict[int, Span] = {}
        end = 0
        for index, message in enumerate(messages):
            is_wanted = indices is None or index in indices
            if message["role"] != "assistant" or not is_wanted:
                continue
            if index == len(messages) - 1:
                span = Span(last.begin, len(last.text))
            else:
                span = self._earlier_answer(last.text, messages, index)
            if span.begin < end:
                raise UnclearAnswer(index, "the chat template prints it before an earlier one")
            end = span.end
            spans[index] = self._proved(last.text, span, message, index)
        return last.text, spans

    def turn(self, messages: Messages) -> Turn:
        """Return a conversation that ends with an answer, and where that answer begins.

        Raises UnclearAnswer, and what the chat template raises.
        """
        whole = self._print(messages)
        try:
            prompt = self._print_prompt(messages[:-1])
        except Exception:  # some templates refuse to begin with an answer
            span = self._by_shape(whole, messages, len(messages) - 1, self._print)
            return Turn(whole, span.begin)
        if whole.startswith(prompt):
            return Turn(whole, self._after_header(whole, len(prompt)))
        # The request may open something that the answer lacks, such as a thought.
        shared = length_shared(prompt, whole)
        if shared >= length_shared(prompt, self._print(messages[:-1])):
            return Turn(whole, self._before_marker(whole, shared))
        # The template prints the history in another way once an answer follows.
        begin = self._begin_after_previous(whole, messages, len(messages) - 1, self._print)
        return Turn(prompt + whole[begin:], len(prompt))

    def exchange(self, prompt: Messages, messages: Messages) -> str:
        """Return a conversation that begins with a prompt, as the model sees and continues it.

        Some templates print a prompt in another way once answers follow: then the answers stand
        behind the prompt as the model gets it. Raises UnclearAnswer, and what the template raises.
        """
        text = self.turn(messages).text
        if len(messages) - len(prompt) == 1:
            return text
        asked = self._print_prompt(prompt)
        shared = length_shared(asked, text)
        if shared == len(asked) or shared >= length_shared(asked, self._print(prompt)):
            return text
        answers = range(len(prompt), len(messages))
        _text, spans = self.find(messages, answers)
        return asked + text[min(span.begin for span in spans.values()) :]

    def _print(self, messages: Messages) -> str:
        return self.template.render(messages, self.tools)

    def _print_prompt(self, messages: Messages) -> str:
        return self.template.render(messages, self.tools, opens_answer=True)

    def _print_turn(self, messages: Messages) -> str:
        return self.turn(messages).text

    def _earlier_answer(self, text: str, messages: Messages, index: int) -> Span:
        """Return the place of an answer that others follow."""
        try:
            turn = self.turn(messages[: index + 1])
        except Exception:  # some templates refuse a conversation that ends here
            return self._by_shape(text, messages, index, self._print_turn)
        self._end_of_text(turn.text[turn.begin :], messages[index], index)
        if text.startswith(turn.text):
            return Span(turn.begin, len(turn.text))
        begin = turn.begin
        if not text.startswith(turn.text[:begin]):
            # An earlier turn is printed in another way, now that others follow.
            begin = self._begin_after_previous(text, messages, index, self._print_turn)
        answer, rest = turn.text[turn.begin :], text[begin:]
        found = 0
        for skipped, recognised in _alignments(answer, rest, messages[index]):
            found = max(found, self._end_in_history(answer[skipped:], rest, recognised))
        if not found:
            raise UnclearAnswer(index, "the chat template prints it in another way in the history")
        return Span(begin, begin + found)

    def _end_in_history(self, answer: str, rest: str, recognised: int) -> int:
        """Return where an answer ends in the text that begins with it.

        `answer` is printed as the last one, which another token may end. Up to `recognised` the
        text is known to be the answer.
        """
        end = recognised + length_shared(answer[recognised:], rest[recognised:])
        if end < len(answer):
            end = self._before_marker(rest, end)
            if not self.template.ends.search(rest, recognised, end):
                own, other = (self.template.ends.match(each, end) for each in (answer, rest))
                end = other.end() if own and other else end
        return end

    def _begin_after_previous(
        self, text: str, messages: Messages, index: int, print_all: Print
    ) -> int:
        """Return where an answer begins behind the message before it. `text` holds all messages."""
        if index == 0:
            raise UnclearAnswer(index, "the chat template does not show where it begins")
        prompt = self._print_prompt(messages[:index])
        asked = self._place(prompt, messages[:index], index - 1, self._print_prompt)
        seen = self._place(text, messages, index - 1, print_all)
        request, rest = prompt[asked.end :], text[seen.end :]
        shared = length_shared(request, rest)
        if shared < len(request) - len(self.template.turn_shape.opening):
            raise UnclearAnswer(index, "the chat template does not show where it begins")
        if shared < len(request):
            return self._before_marker(text, seen.end + shared)
        return self._after_header(text, seen.end + shared)

    def _place(self, text: str, messages: Messages, index: int, print_all: Print) -> Span:
        """Return the place of a message's content, found by printing another one in its place."""
        altered, word = [*messages], f"{PLACEHOLDER}{index}q"
        altered[index] = {**messages[index], "content": word}
        before, found, behind = print_all(altered).partition(word)
        span = Span(len(before), len(text) - len(behind))
        is_the_same = text.startswith(before) and text.endswith(behind) and span.begin <= span.end
        if not found or word in behind or not is_the_same:
            raise UnclearAnswer(index, "the chat template prints its content in no one place")
        return span

    def _by_shape(self, text: str, messages: Messages, index: int, print_all: Print) -> Span:
        """Return the place of an answer, from what the template prints around a plain one."""
        shape = self.template.turn_shape
        content = self._place(text, messages, index, print_all)
        before = text[: content.begin]
        if not shape.kept_opening or not before.endswith(
            (shape.kept_opening, shape.kept_opening + shape.header)
        ):
            raise UnclearAnswer(index, "the chat template does not show where it begins")
        begin = before.rindex(shape.kept_opening) + len(shape.kept_opening)
        behind = text[content.end :]
        end = content.end + len(behind) - len(behind.lstrip())
        if not shape.end or not text.startswith(shape.end, end):
            raise UnclearAnswer(index, "the chat template does not show where it ends")
        return Span(begin, end + len(shape.end))

    def _after_header(self, text: str, begin: int) -> int:
        """Return where an answer begins behind its header, which some templates print with it."""
        shape = self.template.turn_shape
        if not shape.opening and shape.header.strip() and text.startswith(shape.header, begin):
            return begin + len(shape.header)
        return begin

    def _before_marker(self, text: str, place: int) -> int:
        """Return a place in a text, moved to the beginning of a marker that it lies in."""
        for marker in self.template.markers.finditer(text, max(0, place - LONGEST_MARKER)):
            if marker.start() < place < marker.end():
                return marker.start()
        return place

    def _proved(self, text: str, span: Span, message: Message, index: int) -> Span:
        """Return the place of an answer without the white space behind its end-of-turn token.

        Raises UnclearAnswer if its text or such a token is missing.
        """
        answer = text[span.begin : span.end].rstrip()
        end_of_text = self._end_of_text(answer, message, index)
        end_of_turn = self.template.turn_shape.end
        is_ended = bool(end_of_turn) and answer.endswith(end_of_turn, end_of_text)
        for marker in self.template.ends.finditer(answer, end_of_text):
            is_ended = is_ended or marker.end() == len(answer)
        if not is_ended:
            reason = "the chat template prints no end-of-turn token behind it, so the model would"
            raise UnclearAnswer(index, f"{reason} not learn to stop")
        return Span(span.begin, span.begin + len(answer))

    def _end_of_text(self, answer: str, message: Message, index: int) -> int:
        """Return where the text of an answer ends in what the template prints of it.

        Raises UnclearAnswer if it prints neither that nor a call.
        """
        for anchor in _anchors(message):
            if anchor in answer:
                return answer.rindex(anchor) + len(anchor)
        if self.template.markers.sub("", answer).strip():
            raise UnclearAnswer(index, OTHER_TEXT)
        lost = "its tool calls" if message.get("tool_calls") else "its text"
        raise UnclearAnswer(index, NOTHING_PRINTED.format(lost=lost))


def require_printed(text: str, messages: Messages, first: int = 0) -> None:
    """Raise UnclearAnswer if a text lacks an answer from message `first` on, or holds one twice.

    Short answers are left out: the same words may stand elsewhere, or be written in another way.
    """
    for index in range(first, len(messages)):
        message = messages[index]
        anchors = [each for each in _anchors(message) if len(each) >= LONG_ANSWER]
        if message["role"] != "assistant" or not anchors:
            continue
        if not any(anchor in text for anchor in _anchors(message)):
            raise UnclearAnswer(index, OTHER_TEXT)
        known = sum(str(each.get("content")).count(anchors[0]) for each in messages)
        if text.count(anchors[0]) > known:
            raise UnclearAnswer(index, "the chat template prints it more than once")


def answer_mask(
    text: str, tokens: Sequence[tuple[int, int]], answers: Mapping[int, Span]
) -> list[bool]:
    """Return which tokens of a text are those of answers, from the place of each token in it.

    A token may reach beyond an answer into white space. Raises UnclearAnswer if one reaches into
    another text, or if the tokens leave out an end of the answer.
    """
    mask = [False] * len(tokens)
    position = 0
    for index, answer in answers.items():
        end = 0
        while position < len(tokens) and tokens[position][0] < answer.end:
            mask[position] = _is_of_answer(text, tokens[position], answer, index)
            end = tokens[position][1]
            position += 1
        if end < answer.end:
            raise UnclearAnswer(index, "its end is no token")
    return mask


def _is_of_answer(text: str, token: tuple[int, int], answer: Span, index: int) -> bool:
    begin, end = token
    if begin == end:  # a token that the tokenizer adds, such as for a space
        return answer.begin <= begin
    if end <= answer.begin:
        return False
    inside = text[max(begin, answer.begin) : min(end, answer.end)]
    outside = text[begin : answer.begin] + text[answer.end : end]
    if inside.strip() and outside.strip():
        raise UnclearAnswer(index, "one token holds a part of it and other text")
    return not outside or bool(inside.strip())


def _anchors(message: Message) -> Iterator[str]:
    """Yield texts of an answer of which a template prints at least one: the longest first."""
    content = message.get("content")
    if isinstance(content, str) and content.strip():
        yield content.strip()
        if END_OF_THOUGHT in content:
            visible = content.rpartition(END_OF_THOUGHT)[2].strip()
            if visible:
                yield visible
    for call in message.get("tool_calls") or ():
        yield str(call["function"]["name"])


def _alignments(answer: str, rest: str, message: Message) -> Iterator[tuple[int, int]]:
    """Yield ways in which a text can begin with an answer, of which it may leave out a thought.

    Each way is (characters of the answer that are left out, place in the text behind what was
    recognised).
    """
    for anchor in _anchors(message):
        for place in _places(anchor, answer)[-MAX_PLACES:]:
            for begin in _places(anchor, rest[: place + len(anchor)])[:MAX_PLACES]:
                if _is_without_a_part(rest[:begin], answer[:place]):
                    yield place - begin, begin + len(anchor)


def _is_without_a_part(text: str, whole: str) -> bool:
    """Return whether a text is another one of which one part may be missing."""
    shared = length_shared(text, whole)
    return shared + length_shared(text[::-1], whole[::-1]) >= len(text) <= len(whole)


def _places(part: str, text: str) -> Sequence[int]:
    """Return where a part begins in a text."""
    places, place = [], text.find(part)
    while place >= 0:
        places.append(place)
        place = text.find(part, place + 1)
    return places
