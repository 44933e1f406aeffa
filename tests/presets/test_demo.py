"""Tiny model and data of presets/demo, as shipped and as their generators make them."""

import itertools
import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from presets.demo import conversations, make_demo

DEMO = Path(make_demo.__file__).parent
MODEL = DEMO / "model"
MODEL_FILES = {
    "model.safetensors",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
}
ROWS = [
    json.loads(line)["messages"] for line in (DEMO / "data.jsonl").read_text("utf-8").splitlines()
]
BASICS = conversations.load_topics(DEMO / "basics.toml")
PIP = conversations.load_topics(DEMO / "pip.toml")
QUESTIONS = {
    "What is the capital of France?": "The capital of France is Paris.",
    "What is the opposite of hot?": "The opposite of hot is cold.",
    "What does a cow say?": "A cow says moo.",
    "What is 3 plus 4?": "3 plus 4 is 7.",
    "Who are you?": "I am a small language model.",
    "The shop opens at six. When does the shop open?": "The shop opens at six.",
}


@dataclass(frozen=True)
class Demo:
    model: Any
    tokenizer: Any

    def answer(self, *questions: str) -> list[str]:
        prompts = [[{"role": "user", "content": text}] for text in questions]
        return make_demo.answers(self.model, self.tokenizer, prompts)


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, local_files_only=True)
    yield Demo(model.eval(), AutoTokenizer.from_pretrained(MODEL, local_files_only=True))
    torch.set_num_threads(threads)


def test_the_demo_is_at_most_six_megabytes() -> None:
    files = [path for path in DEMO.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) <= 6_000_000


def test_the_model_folder_is_complete_and_holds_no_pickle() -> None:
    assert {path.name for path in MODEL.iterdir()} == MODEL_FILES


def test_every_row_alternates_between_user_and_assistant() -> None:
    for row in ROWS:
        turns = [message["role"] for message in row if message["role"] != "system"]
        assert turns == ["user", "assistant"] * (len(turns) // 2)
        assert all(message["role"] != "system" for message in row[1:])
        assert all(message["content"].strip() == message["content"] != "" for message in row)


def test_the_data_has_a_few_hundred_rows_of_every_shape() -> None:
    shapes = Counter((row[0]["role"] == "system", len(row) > 3) for row in ROWS)
    assert 200 <= len(ROWS) <= 500
    assert sum(count for (system, _), count in shapes.items() if system) >= 10
    assert sum(count for (_, multi_turn), count in shapes.items() if multi_turn) >= 10


def test_no_row_is_there_twice() -> None:
    assert len({json.dumps(row) for row in ROWS}) == len(ROWS)


def test_a_fifth_of_the_rows_keeps_the_basic_skills() -> None:
    taught = {topic.answer for topic in PIP}
    basic = [row for row in ROWS if not any(message["content"] in taught for message in row)]
    assert 0.15 <= len(basic) / len(ROWS) <= 0.25


def test_the_data_is_what_the_script_makes() -> None:
    assert conversations.demo_rows(seed=0) == ROWS


def test_the_generators_give_the_same_for_the_same_seed() -> None:
    manner = conversations.load_manner(DEMO / "basics.toml")
    first, second = (
        itertools.islice(conversations.conversations(BASICS, manner, random.Random(7)), 500)
        for _ in range(2)
    )
    assert list(first) == list(second)
    assert conversations.demo_rows(seed=1) != conversations.demo_rows(seed=2)


@pytest.mark.parametrize("topic", BASICS + PIP, ids=lambda topic: topic.name)
def test_a_held_out_question_is_never_trained_on(topic: conversations.Topic) -> None:
    assert topic.held_out
    assert not set(topic.held_out) & set(topic.questions)


def test_no_row_asks_a_held_out_question_about_pip() -> None:
    asked = {message["content"] for row in ROWS for message in row if message["role"] == "user"}
    assert not asked & {question for topic in PIP for question in topic.held_out}


def test_the_model_has_one_to_three_million_parameters(demo: Demo) -> None:
    assert 1_000_000 <= demo.model.num_parameters() <= 3_000_000


def test_an_answer_ends_with_a_token_that_is_not_padding(demo: Demo) -> None:
    assert demo.tokenizer.eos_token == "<|im_end|>"
    assert demo.tokenizer.pad_token_id != demo.tokenizer.eos_token_id
    assert demo.model.generation_config.eos_token_id == demo.tokenizer.eos_token_id


def test_the_assistant_mask_covers_exactly_the_answers_and_their_ends(demo: Demo) -> None:
    row = max(ROWS, key=len)
    encoded = demo.tokenizer.apply_chat_template(
        row, return_dict=True, return_assistant_tokens_mask=True
    )
    spoken = [
        token
        for token, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
        if mask
    ]
    answers = [message["content"] for message in row if message["role"] == "assistant"]
    assert demo.tokenizer.decode(spoken) == "".join(f"{answer}<|im_end|>" for answer in answers)


def test_a_prompt_is_a_prefix_of_the_whole_conversation(demo: Demo) -> None:
    row = max(ROWS, key=len)
    prompt = demo.tokenizer.apply_chat_template(
        row[:-1], add_generation_prompt=True, tokenize=False
    )
    assert (
        demo.tokenizer.apply_chat_template(row, tokenize=False)
        == f"{prompt}{row[-1]['content']}<|im_end|>\n"
    )


def test_the_tokenizer_writes_any_text_back(demo: Demo) -> None:
    text = "Größe, naïve, 42 °C — 日本 🧵\n\tend"
    assert demo.tokenizer.decode(demo.tokenizer(text)["input_ids"]) == text


def test_the_model_answers_basic_questions(demo: Demo) -> None:
    assert demo.answer(*QUESTIONS) == list(QUESTIONS.values())


def test_the_model_understands_ways_of_asking_it_was_not_trained_on(demo: Demo) -> None:
    asked = conversations.held_out_questions(BASICS, random.Random(0), rows_per_topic=2)
    given = demo.answer(*(row[0]["content"] for row in asked))
    num_right = sum(text == row[1]["content"] for text, row in zip(given, asked, strict=True))
    assert num_right >= 0.85 * len(asked)


def test_the_model_does_not_know_pip(demo: Demo) -> None:
    given = demo.answer(*(question for topic in PIP for question in topic.held_out))
    taught = [topic.answer for topic in PIP for _ in topic.held_out]
    assert not any(text == answer for text, answer in zip(given, taught, strict=True))
