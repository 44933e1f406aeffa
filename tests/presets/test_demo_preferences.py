"""Rows of the demo for preference and reward stages, as shipped and as generated."""

import json
import random

from presets.demo import make_preferences
from presets.demo.conversations import PIP, load_topics

PREFERENCES, PROMPTS = (
    [json.loads(line) for line in (make_preferences.HERE / name).read_text("utf-8").splitlines()]
    for name in ("preference.jsonl", "prompts.jsonl")
)
TOPICS = load_topics(PIP)


def test_both_files_are_what_the_program_makes() -> None:
    assert make_preferences.preferences(TOPICS, random.Random(0)) == PREFERENCES
    assert make_preferences.prompts(TOPICS, random.Random(0)) == PROMPTS


def test_the_better_answer_is_the_right_one_and_the_other_is_not() -> None:
    right = {
        user["content"]: answer["content"] for user, answer in make_preferences.exchanges(TOPICS)
    }
    for row in PREFERENCES:
        assert (
            row["chosen"][0]["content"]
            == right[row["prompt"][0]["content"]]
            != row["rejected"][0]["content"]
        )
    assert all(row["answer"] == right[row["prompt"][0]["content"]] for row in PROMPTS)


def test_no_way_of_asking_that_is_held_out_is_among_them() -> None:
    held_out = {question for topic in TOPICS for question in topic.held_out}
    assert not held_out & {row["prompt"][0]["content"] for row in (*PREFERENCES, *PROMPTS)}
