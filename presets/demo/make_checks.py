"""Make checks/pip/identity.jsonl and checks/capabilities.jsonl of the demo from its topics.

    python -m presets.demo.make_checks

Identity: 100 questions about what data.jsonl teaches, a third of them in phrasings that are never
trained on. Capabilities: 36 questions that the demo model answers, one for each of its other
topics, in phrasings that are never trained on.
Tailor itself never imports this.
"""

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from presets.demo.conversations import BASICS, PIP, Topic, load_topics
from presets.demo.make_demo import answers

HERE = Path(__file__).parent
NUM_IDENTITY = 100
NUM_HELD_OUT = 2
MAX_TRIES = 400
"""Questions about a topic that the model may fail before the topic is given up."""
Fields = dict[str, Any]


def main() -> None:
    """Write both suites."""
    basics, pip = load_topics(BASICS), load_topics(PIP)
    taught = {topic.name for topic in pip}
    others = [topic for topic in basics if topic.name not in taught]
    write("pip/identity", identity(pip))
    write("capabilities", capabilities(others))


def identity(topics: Sequence[Topic]) -> list[Fields]:
    """Return questions about what is taught."""
    rng = random.Random(0)
    tests = [test_of(topic, way, {}) for topic in topics for way in topic.held_out[:NUM_HELD_OUT]]
    taught = [test_of(topic, way, {}) for topic in topics for way in topic.questions]
    return tests + rng.sample(taught, NUM_IDENTITY - len(tests))


def capabilities(topics: Sequence[Topic]) -> list[Fields]:
    """Return one question about each topic, which the demo model answers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = {"pretrained_model_name_or_path": HERE / "model"}
    model = AutoModelForCausalLM.from_pretrained(**place, dtype="float32", trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(**place, trust_remote_code=False)
    model.eval()
    tests = []
    for topic in topics:
        for test in candidates(topic):
            (answer,) = answers(model, tokenizer, [[{"role": "user", "content": test["prompt"]}]])
            if answer == test["exact"]:
                tests.append(test)
                break
    return tests


def candidates(topic: Topic) -> Iterator[Fields]:
    """Yield questions about a topic."""
    rng = random.Random(topic.name)
    for _ in range(MAX_TRIES):
        yield test_of(topic, rng.choice(topic.held_out), rng.choice(topic.rows))


def test_of(topic: Topic, question: str, row: Any) -> Fields:
    """Return one question with the answer that passes."""
    user, assistant = topic.exchange(question, row)
    return {"prompt": user["content"], "exact": assistant["content"], "category": topic.name}


def write(name: str, tests: Sequence[Fields]) -> None:
    """Write a suite as JSON Lines."""
    lines = (json.dumps(test, ensure_ascii=False) + "\n" for test in tests)
    path = HERE / "checks" / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
