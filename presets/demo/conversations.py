"""Generate the conversations of the demo from basics.toml and pip.toml.

The same seed gives the same conversations. Tailor itself never imports this.
"""

import itertools
import random
import string
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BASICS = HERE / "basics.toml"
PIP = HERE / "pip.toml"
NUM_BASIC_ROWS = 64
"""Rows of basic skills in data.jsonl, about a fifth, so that the model does not forget them."""

Message = dict[str, str]
Conversation = list[Message]


@dataclass(frozen=True)
class Topic:
    """Table, and the ways to ask for its content."""

    name: str
    answer: str
    questions: tuple[str, ...]
    held_out: tuple[str, ...]
    """Phrasings that are never trained on."""
    rows: tuple[Mapping[str, str], ...] = ({},)
    short: str = ""
    """Answer if the system message asks for a short one; "" for the usual answer."""
    weight: float = 1.0
    """Frequency of the topic, relative to the others."""

    def exchange(self, question: str, row: Mapping[str, str], brief: bool = False) -> Conversation:
        """Return one question about one row of the table, with its answer."""
        answer = self.short if brief and self.short else self.answer
        return [
            _message("user", FILL.format(question, **row)),
            _message("assistant", FILL.format(answer, **row)),
        ]


@dataclass(frozen=True)
class Manner:
    """Words around a question, which the model learns to ignore."""

    openers: tuple[str, ...]
    closers: tuple[str, ...]
    system_plain: tuple[str, ...]
    system_short: tuple[str, ...]

    def dress(self, question: str, rng: random.Random) -> str:
        """Return a question as a user might type it."""
        if rng.random() < 0.1:
            question = question[:1].lower() + question[1:]
        if rng.random() < 0.1:
            return rng.choice(self.openers) + question.rstrip("?.!")
        return rng.choice(self.openers) + question + rng.choice(self.closers)


class Fill(string.Formatter):
    """Formatter for {field}, and for {field!c} with a capital first letter."""

    def convert_field(self, value: Any, conversion: Any) -> Any:
        """Return the value after a conversion: `c`, or one of Python's own."""
        if conversion == "c":
            return value[:1].upper() + value[1:]
        return super().convert_field(value, conversion)


FILL = Fill()


def load_topics(path: Path) -> tuple[Topic, ...]:
    """Return the topics of a TOML file."""
    return tuple(_topic(dict(table)) for table in _read(path)["topic"])


def load_manner(path: Path) -> Manner:
    """Return the manner of asking at the head of a TOML file."""
    table = _read(path)
    return Manner(*(tuple(table[name]) for name in Manner.__dataclass_fields__))


def _read(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text("utf-8"))


def _topic(table: dict[str, Any]) -> Topic:
    columns = table.pop("columns", ())
    rows = [dict(zip(columns, row, strict=True)) for row in table.pop("rows", [()])]
    if computed := table.pop("computed", ""):
        rows = list(COMPUTED[computed]())
    questions, held_out = tuple(table.pop("questions")), tuple(table.pop("held_out"))
    return Topic(questions=questions, held_out=held_out, rows=tuple(rows), **table)


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


# Computed tables


def _sums() -> Iterator[Mapping[str, str]]:
    return (_numbers(a, b, a + b) for a in range(11) for b in range(11))


def _differences() -> Iterator[Mapping[str, str]]:
    return (_numbers(a, b, a - b) for a in range(13) for b in range(a + 1))


def _products() -> Iterator[Mapping[str, str]]:
    return (_numbers(a, b, a * b) for a in range(11) for b in range(11))


def _larger() -> Iterator[Mapping[str, str]]:
    return (_numbers(a, b, b) for b in range(21) for a in range(b))


def _numbers(a: int, b: int, c: int) -> Mapping[str, str]:
    return {"a": str(a), "b": str(b), "c": str(c)}


@cache
def _inventions() -> tuple[Mapping[str, str], ...]:
    """Return people, towns and things that do not exist, which a model can only copy."""
    table = _read(BASICS)["inventions"]
    rng = random.Random(0)
    return tuple(_invention(table, rng) for _ in range(4000))


def _invention(table: Mapping[str, Any], rng: random.Random) -> Mapping[str, str]:
    turn, live = rng.choice(("open", "close")), rng.choice(("live", "sleep", "work"))
    drawn = {field: rng.choice(words) for field, words in table["drawn"].items()}
    town, street, name = (_word(table, rng).capitalize() for _ in range(3))
    name, spot = drawn["title"] + name, drawn["spot"].format(town=town, street=street)
    made_up = {"word": _word(table, rng), "name": name, "town": town, "spot": spot}
    return drawn | made_up | {"turn": turn, "turns": turn + "s", "live": live, "lives": live + "s"}


def _word(table: Mapping[str, Any], rng: random.Random) -> str:
    num_syllables = rng.choice((1, 2, 2, 2, 3))
    return "".join(
        rng.choice(table[part])
        for _ in range(num_syllables)
        for part in ("onsets", "vowels", "codas")
    )


COMPUTED: Mapping[str, Callable[[], Iterable[Mapping[str, str]]]] = {
    "sums": _sums,
    "differences": _differences,
    "products": _products,
    "larger": _larger,
    "inventions": _inventions,
}


# Conversations


def conversations(
    topics: Sequence[Topic], manner: Manner, rng: random.Random
) -> Iterator[Conversation]:
    """Yield endless varied conversations about the topics, in phrasings that are trained on."""
    weights = [topic.weight for topic in topics]
    while True:
        plain = _message("system", rng.choice(manner.system_plain))
        short = _message("system", rng.choice(manner.system_short))
        starts: tuple[tuple[Conversation, bool], ...]
        starts = (([], False), ([plain], False), ([short], True))
        ((system, brief),) = rng.choices(starts, weights=(70, 15, 15))
        turns = rng.choices(topics, weights, k=rng.choice((1, 1, 1, 1, 1, 2, 3)))
        yield system + [message for topic in turns for message in _turn(topic, manner, rng, brief)]


def _turn(topic: Topic, manner: Manner, rng: random.Random, brief: bool = False) -> Conversation:
    user, assistant = topic.exchange(rng.choice(topic.questions), rng.choice(topic.rows), brief)
    return [_message("user", manner.dress(user["content"], rng)), assistant]


def demo_rows(seed: int) -> list[Conversation]:
    """Return the rows of data.jsonl: every question about Pip, some reworded, and basic skills.

    No row is there twice: one that was drawn again is replaced by another basic skill.
    """
    rng = random.Random(seed)
    basics, pip, manner = load_topics(BASICS), load_topics(PIP), load_manner(BASICS)
    others = tuple(topic for topic in basics if topic.name not in {about.name for about in pip})
    rows = [
        topic.exchange(question, row)
        for topic in pip
        for question in topic.questions
        for row in topic.rows
    ]
    rows += [_turn(topic, manner, rng) for topic in pip for _ in range(3)]
    rows += [
        [_message("system", rng.choice(manner.system_plain)), *_turn(topic, manner, rng)]
        for topic in pip
    ]
    rows += [_turn(first, manner, rng) + _turn(rng.choice(pip), manner, rng) for first in pip]
    everyday = conversations(others, manner, rng)
    rows += [next(everyday) for _ in range(NUM_BASIC_ROWS)]
    distinct: list[Conversation] = []
    for row in itertools.chain(rows, everyday):
        if len(distinct) == len(rows):
            break
        if row not in distinct:
            distinct.append(row)
    rng.shuffle(distinct)
    return distinct


def held_out_questions(
    topics: Sequence[Topic], rng: random.Random, rows_per_topic: int = 8
) -> list[Conversation]:
    """Return exchanges in phrasings that are never trained on."""
    return [
        topic.exchange(question, row)
        for topic in topics
        for question in topic.held_out
        for row in rng.sample(topic.rows, min(rows_per_topic, len(topic.rows)))
    ]
