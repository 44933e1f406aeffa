"""Make the demo's rows for preference and reward stages, from pip.toml.

    python -m presets.demo.make_preferences [--out DIR] [--seed N]

Writes DIR/preference.jsonl and DIR/prompts.jsonl, the same for the same seed. Tailor itself never
imports this.
"""

import argparse
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from presets.demo.conversations import PIP, Conversation, Topic, load_topics

HERE = Path(__file__).parent
NUM_PREFERENCES, NUM_PROMPTS = 160, 120
Row = Mapping[str, object]


def exchanges(topics: Sequence[Topic]) -> list[Conversation]:
    """Return every question about Pip that is trained on, with its answer."""
    return [
        topic.exchange(question, row)
        for topic in topics
        for question in topic.questions
        for row in topic.rows
    ]


def preferences(topics: Sequence[Topic], rng: random.Random) -> list[Row]:
    """Return questions, each with its right answer and the answer to another question."""
    known = exchanges(topics)
    answers = sorted({answer["content"] for _, answer in known})
    return [
        {
            "prompt": [user],
            "chosen": [right],
            "rejected": [right | {"content": rng.choice(_others(answers, right))}],
        }
        for user, right in rng.sample(known, NUM_PREFERENCES)
    ]


def prompts(topics: Sequence[Topic], rng: random.Random) -> list[Row]:
    """Return questions, each with the right answer, by which generated answers are scored."""
    chosen = rng.sample(exchanges(topics), NUM_PROMPTS)
    return [{"prompt": [user], "answer": right["content"]} for user, right in chosen]


def _others(answers: Iterable[str], right: Mapping[str, str]) -> list[str]:
    return [answer for answer in answers if answer != right["content"]]


def _save(rows: Iterable[Row], path: Path) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=HERE, help="folder for both files (default: this one)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the choice of rows (default: %(default)s)"
    )
    options = parser.parse_args()
    topics = load_topics(PIP)
    _save(preferences(topics, random.Random(options.seed)), options.out / "preference.jsonl")
    _save(prompts(topics, random.Random(options.seed)), options.out / "prompts.jsonl")


if __name__ == "__main__":
    main()
