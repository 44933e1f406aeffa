"""Ollama's template of a chat model, derived from its Jinja template by asking that.

Ollama fills a template of Go with the messages. The derived one is proved on conversations: it must
print exactly what the Jinja template prints, or it is refused.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

Messages = Sequence[Mapping[str, str]]
Render = Callable[[Messages, bool], str]
"""Return messages as text, with what asks for an answer if the flag is set."""
QUESTION, ANSWER, SYSTEM, SECOND = "qzqQUESTIONqzq", "qzqANSWERqzq", "qzqSYSTEMqzq", "qzqSECONDqzq"
TEXT = 'First line.\n\nSecond line, with "quotes" and {{ braces }}.'
NO_SYSTEM = "The template takes no system text, so Ollama ignores one."
ESCAPED = re.compile(r'[\s{}"\\]')
"""Characters that a template of Go does not print as they stand, or a Modelfile cuts off."""


SHORT_ESCAPES = {"\n": "\\n", "\t": "\\t", '"': '\\"', "\\": "\\\\"}


class UnknownTemplate(Exception):
    """Chat template that Ollama's form cannot express."""


@dataclass(frozen=True)
class GoTemplate:
    """Text around each part of a conversation."""

    user: tuple[str, str]
    assistant: tuple[str, str]
    generation: str
    """Text that asks for an answer."""
    system: tuple[str, str] | None = None
    """Text around a system text; None if the template takes none."""
    is_system_in_question: bool = False
    """True if it stands inside the first question."""
    default: str = ""
    """Head of a conversation without a system text."""

    def text(self) -> str:
        """Return the template as a Modelfile holds it."""
        before, after = map(_literal, self.user)
        answer = "".join(
            (_literal(self.assistant[0]), "{{ .Content }}", _literal(self.assistant[1]))
        )
        inside, head = "", _literal(self.default)
        if self.system:
            start, end = map(_literal, self.system)
            if self.is_system_in_question:
                condition = "{{ if and $.System (le $i 1) }}"
                inside = f"{condition}{start}{{{{ $.System }}}}{end}{{{{ end }}}}"
            else:
                otherwise = f"{{{{ else }}}}{head}" if head else ""
                head = f"{{{{ if .System }}}}{start}{{{{ .System }}}}{end}{otherwise}{{{{ end }}}}"
        question = f"{before}{inside}{{{{ .Content }}}}{after}"
        return (
            f"{head}{{{{ range $i, $_ := .Messages }}}}"
            f'{{{{ if eq .Role "user" }}}}{question}'
            f'{{{{ else if eq .Role "assistant" }}}}{answer}{{{{ end }}}}'
            f"{{{{ end }}}}{_literal(self.generation)}"
        )

    def render(self, messages: Messages) -> str:
        """Return what Ollama would make of messages, with the request for an answer."""
        system = "\n\n".join(each["content"] for each in messages if each["role"] == "system")
        around = self.system or ("", "")
        parts = [self.default]
        if system and self.system and not self.is_system_in_question:
            parts = [around[0], system, around[1]]
        for index, message in enumerate(messages):
            if message["role"] == "user":
                inside = ""
                if system and self.is_system_in_question and index <= 1:
                    inside = f"{around[0]}{system}{around[1]}"
                parts += [self.user[0], inside, message["content"], self.user[1]]
            elif message["role"] == "assistant":
                parts += [self.assistant[0], message["content"], self.assistant[1]]
        return "".join([*parts, self.generation])


def derive(render: Render) -> GoTemplate:
    """Return the template of Ollama that prints what a chat template prints.

    Raises UnknownTemplate if there is none of its form.
    """
    try:
        template = _around_roles(render)
    except UnknownTemplate:
        raise
    except Exception as error:  # a template may raise anything
        raise UnknownTemplate(f"it refuses a plain conversation: {error}") from None
    for messages in conversations(has_system=template.system is not None):
        if template.render(messages) != render(messages, True):
            shown = " ".join(each["role"] for each in messages)
            raise UnknownTemplate(f"Ollama's form cannot print a conversation of {shown}")
    return template


def conversations(*, has_system: bool) -> tuple[Messages, ...]:
    """Return the conversations on which a derived template is proved."""
    user, answer = {"role": "user", "content": "Hi!"}, {"role": "assistant", "content": "Hello."}
    more, system = {"role": "user", "content": TEXT}, {"role": "system", "content": "Be brief."}
    plain: tuple[Messages, ...] = ([user], [more], [user, answer, more])
    plain += ([user, answer, more, {"role": "assistant", "content": TEXT}, user],)
    if not has_system:
        return plain
    return (*plain, *([system, *messages] for messages in plain))


def _around_roles(render: Render) -> GoTemplate:
    user, answer = _message("user", QUESTION), _message("assistant", ANSWER)
    asked = render([user], True)
    whole = render([user, answer, _message("user", SECOND)], False)
    head, rest = _split(whole, QUESTION)
    middle, tail = _split(rest, ANSWER)
    after, ended = _split(tail, SECOND)
    # Some print an end of text where nothing asks for an answer.
    user_end = _common_start(ended, middle)
    generation = _without_start(_split(asked, QUESTION)[1], user_end)
    assistant_start = _without_start(middle, user_end)
    user_start = _common_end(head, after)
    default = head.removesuffix(user_start)
    around_user = (user_start, user_end)
    around_answer = (assistant_start, after.removesuffix(user_start))
    try:
        told = render([_message("system", SYSTEM), user], False)
    except Exception:  # a template may raise anything
        told = ""
    if told.count(SYSTEM) != 1:
        return GoTemplate(around_user, around_answer, generation, None, False, default)
    start, rest = _split(told, SYSTEM)
    end = _split(rest, QUESTION)[0]
    if user_start and end.endswith(user_start):
        around_system = (start, end.removesuffix(user_start))
        return GoTemplate(around_user, around_answer, generation, around_system, False, default)
    if start.endswith(user_start):
        # The head before the first question is printed with a system text, too.
        inside = (start.removeprefix(default).removeprefix(user_start), end)
        return GoTemplate(around_user, around_answer, generation, inside, True, default)
    raise UnknownTemplate("it puts the system text into an unknown place")


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _split(text: str, mark: str) -> tuple[str, str]:
    if text.count(mark) != 1:
        raise UnknownTemplate("it leaves out a message, or prints it twice")
    before, after = text.split(mark)
    return before, after


def _without_start(text: str, start: str) -> str:
    if not text.startswith(start):
        raise UnknownTemplate("it prints a question in another way when it asks for an answer")
    return text.removeprefix(start)


def _common_start(one: str, other: str) -> str:
    pairs = takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return "".join(letter for letter, _same in pairs)


def _common_end(one: str, other: str) -> str:
    return _common_start(one[::-1], other[::-1])[::-1]


def _literal(text: str) -> str:
    """Return a text as a template of Go prints it.

    Ollama drops characters that cannot be seen from a Modelfile, so they are escaped.
    """
    if text.isprintable() and not ESCAPED.search(text):
        return text
    return '{{ "' + "".join(map(_in_go, text)) + '" }}'


def _in_go(letter: str) -> str:
    if letter.isprintable() and letter not in '"\\':
        return letter
    if ord(letter) > 0xFFFF:
        return f"\\U{ord(letter):08x}"
    return SHORT_ESCAPES.get(letter, f"\\u{ord(letter):04x}")
