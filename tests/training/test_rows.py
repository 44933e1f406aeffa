"""Rows of a job as the training program reads them: formats, held-out rows, prompts."""

import json
from pathlib import Path
from typing import Any

import pytest

from core.training.contract.failures import TrainingError
from core.training.contract.row_reader import BadRow, read_row
from core.training.data.rows import Rows, read_rows
from tests.builders.paths import DEMO
from tests.builders.training_runs import make_run, write_rows

CONVERSATION = {
    "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
}
QUESTION = [{"role": "user", "content": "hi"}]
YES = [{"role": "assistant", "content": "yes"}]
NO = [{"role": "assistant", "content": "no"}]
TOOL = {"type": "function", "function": {"name": "look"}}


def read(folder: Path, *rows: object, stage: str = "sft") -> Rows:
    """Read rows from a file as a job of a stage does."""
    write_rows(make_run(folder / "run"), *rows)
    return read_rows(folder / "run", "data/train.jsonl", "", 0.0, 0, stage=stage)


# Formats


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        (CONVERSATION, ["messages", "tools"]),
        ({"prompt": "a", "completion": "b"}, ["prompt", "completion", "tools"]),
        ({"instruction": "a", "output": "b"}, ["prompt", "completion", "tools"]),
        ({"question": "a", "answer": "b", "system": "c"}, ["prompt", "completion", "tools"]),
        ({"text": "a"}, ["text"]),
    ],
)
def test_every_format_becomes_columns_of_trl(
    tmp_path: Path, row: object, columns: list[str]
) -> None:
    rows = read(tmp_path, row, row)
    assert rows.train.column_names == columns
    assert len(rows.train) == 2
    assert rows.eval is None


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": "a"}, "another format than the first row"),
        ({"messages": []}, "has no messages"),
        ({"messages": [{"role": "user", "content": "a"}]}, "no assistant message"),
        ({"messages": [{"role": "user"}]}, "content: has no content; give the text"),
        ({"messages": [{"role": "boss", "content": "a"}]}, "'boss' is not a role"),
        ({"title": "a"}, "no known columns among title"),
        ([1], "must be an object, not a list"),
    ],
)
def test_an_unusable_row_is_refused_by_line(tmp_path: Path, row: object, words: str) -> None:
    with pytest.raises(TrainingError, match=f"dataset line 2: .*{words}"):
        read(tmp_path, CONVERSATION, row)


def test_messages_keep_exactly_their_keys(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "look", "arguments": {"a": 1}}}
    messages = [*QUESTION, {"role": "assistant", "tool_calls": [call]}]
    rows = read(tmp_path, {"messages": messages, "tools": [TOOL]}, CONVERSATION)
    assert [row["messages"] for row in rows.train] == [messages, CONVERSATION["messages"]]


@pytest.mark.parametrize(("num_rows", "num_held_out"), [(19, 0), (20, 1), (100, 5)])
def test_a_share_of_enough_rows_is_held_out(
    tmp_path: Path, num_rows: int, num_held_out: int
) -> None:
    write_rows(make_run(tmp_path), *[{"text": str(number)} for number in range(num_rows)])
    rows = read_rows(tmp_path, "data/train.jsonl", "", 0.05, seed=1)
    held_out = rows.eval or ()
    assert len(held_out) == num_held_out
    numbers = sorted(int(row["text"]) for part in (rows.train, held_out) for row in part)
    assert numbers == list(range(num_rows))


# Stages


@pytest.mark.parametrize(
    ("stage", "row", "expected"),
    [
        (
            "dpo",
            {"prompt": "a", "chosen": "b", "rejected": "c"},
            {"prompt": "a", "chosen": "b", "rejected": "c"},
        ),
        (
            "dpo",
            {"chosen": "so be it", "rejected": "so it is"},
            {"prompt": "so", "chosen": " be it", "rejected": " it is"},
        ),
        (
            "orpo",
            {"chosen": QUESTION + YES, "rejected": QUESTION + NO},
            {"prompt": QUESTION, "chosen": YES, "rejected": NO},
        ),
        (
            "kto",
            {"prompt": "a", "completion": "b", "label": True},
            {"prompt": "a", "completion": "b", "label": True},
        ),
        ("grpo", {"prompt": QUESTION, "solution": 4}, {"prompt": QUESTION, "answer": "4"}),
        ("grpo", {"prompt": "a", "completion": "b"}, {"prompt": "a", "answer": "b"}),
        ("rloo", {"question": "hi", "answer": "yes"}, {"prompt": QUESTION, "answer": "yes"}),
        ("cpt", {"text": "a"}, {"text": "a"}),
    ],
)
def test_a_row_becomes_what_its_stage_reads(
    stage: str, row: dict[str, Any], expected: dict[str, Any]
) -> None:
    found = read_row(json.dumps(row).encode(), stage)
    assert {name: value for name, value in found.items() if name != "tools"} == expected


@pytest.mark.parametrize(
    ("stage", "row", "words"),
    [
        (
            "sft",
            {"chosen": "a", "rejected": "b"},
            "is preference data; choose reward, dpo, kto, orpo or cpo; sft needs",
        ),
        (
            "dpo",
            {"messages": QUESTION + YES},
            "is language modeling data; choose sft or cpt; dpo needs preference",
        ),
        (
            "cpt",
            {"prompt": "a", "completion": "b"},
            "is prompt-completion data; choose sft, grpo or rloo; cpt needs",
        ),
        ("dpo", {"prompt": "a", "chosen": "b", "rejected": "b"}, "rejected: is the chosen answer"),
        ("dpo", {"chosen": QUESTION + YES, "rejected": "c"}, "text beside messages"),
        ("dpo", {"chosen": YES, "rejected": NO}, "does not begin with the same message"),
        (
            "kto",
            {"prompt": "a", "completion": "b", "label": "good"},
            "label: is text, not true or false",
        ),
        ("grpo", {"prompt": QUESTION, "tools": [TOOL]}, "grpo offers no tools"),
        ("grpo", {"title": "a"}, "no known columns among title; use one of: "),
    ],
)
def test_a_row_that_does_not_fit_its_stage_is_refused(
    stage: str, row: dict[str, Any], words: str
) -> None:
    with pytest.raises(BadRow, match=words):
        read_row(json.dumps(row).encode(), stage)


def test_kto_reads_a_pair_as_two_labeled_answers(tmp_path: Path) -> None:
    rows = read(tmp_path, {"prompt": "a", "chosen": "b", "rejected": "c"}, stage="kto").train
    assert [(row["completion"], row["label"]) for row in rows] == [("b", True), ("c", False)]


def test_a_file_for_another_stage_is_refused_with_those_it_fits(tmp_path: Path) -> None:
    words = "dataset line 1: is language modeling data; choose sft or cpt; grpo needs"
    with pytest.raises(TrainingError, match=words):
        read(tmp_path, {"text": "a"}, stage="grpo")


# Prompts


@pytest.mark.training
def test_tools_reach_the_chat_template_of_preferences(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from core.training.data.prompts import preferences_as_text, prompt_ids

    tokenizer = AutoTokenizer.from_pretrained(DEMO / "model")
    tokenizer.chat_template = (
        "{{ tools[0].function.name if tools else 'none' }}:" + tokenizer.chat_template
    )
    row = {"prompt": QUESTION, "chosen": YES, "rejected": NO, "tools": [{"name": "look"}]}
    rows = read(tmp_path, row, stage="orpo")
    text = preferences_as_text(rows, tokenizer, 100, "orpo")["train_dataset"][0]
    assert text["prompt"].startswith("look:")
    assert text["chosen"] == "yes<|im_end|>"
    assert tokenizer.decode(prompt_ids(rows.train[0], tokenizer)).startswith("look:")


@pytest.mark.training
def test_prompts_that_leave_no_room_for_an_answer_are_dropped(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from core.training.data.prompts import prompts_up_to

    tokenizer = AutoTokenizer.from_pretrained(DEMO / "model")
    rows = read(tmp_path, {"prompt": "hi"}, {"prompt": "hi " * 50}, stage="grpo")
    kept = prompts_up_to(rows, tokenizer, 20)["train_dataset"]
    assert [row["prompt"] for row in kept] == ["hi"]


@pytest.mark.training
def test_the_longest_rows_are_found_in_any_order() -> None:
    from datasets import Dataset

    from core.training.loop.probe import longest_rows

    rows = Dataset.from_list([{"input_ids": [0] * length} for length in (3, 9, 1, 9, 7)])
    shuffled = rows.shuffle(seed=1)
    found = [len(shuffled[index]["input_ids"]) for index in longest_rows(shuffled, 3)]
    assert sorted(found) == [7, 9, 9]
