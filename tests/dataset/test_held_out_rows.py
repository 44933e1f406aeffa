"""Held-out rows are held out: equal rows are on one side, the same in the app and the program."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.dataset import find_leak
from core.dataset.rewrite import Composed, Selection, compose
from core.training.contract.row_reader import content_key, content_of, held_out_rows, leak_sentence
from core.training.data.rows import read_rows
from tests.builders.dataset_files import rows_in, write_json_rows


def _text_rows(path: Path, texts: Sequence[object]) -> Path:
    return write_json_rows(path, ({"text": str(text)} for text in texts))


def _split(folder: Path, source: Path, fraction: float, seed: int = 0) -> tuple[set[str], set[str]]:
    """Return the texts to train on and the texts held out."""
    targets = folder / "train.jsonl", folder / "eval.jsonl"
    compose([(source, 1)], targets[0], Selection(0, fraction, seed, "cpt"), targets[1])
    found = [rows_in(path) if path.exists() else [] for path in targets]
    train, held_out = ({row["text"] for row in rows} for rows in found)
    return train, held_out


def test_repeated_rows_are_held_out_or_trained_on_never_both(tmp_path: Path) -> None:
    source = _text_rows(tmp_path / "a.jsonl", [number % 40 for number in range(400)])
    train, held_out = _split(tmp_path, source, 0.05)
    assert len(held_out) == 2  # 20 of 400 rows: each stands there ten times
    assert not train & held_out


@given(st.lists(st.integers(0, 30), max_size=120), st.sampled_from((0.05, 0.3, 0.5)))
@settings(max_examples=50, deadline=None)
def test_no_content_is_on_both_sides(texts: list[int], fraction: float) -> None:
    chosen = held_out_rows(texts, fraction, seed=7)
    held_out = {texts[index] for index in chosen}
    trained = {text for index, text in enumerate(texts) if index not in chosen}
    assert not held_out & trained
    assert len(chosen) <= max(1, len(texts) / 2)


def test_rows_that_never_repeat_give_the_asked_share() -> None:
    assert len(held_out_rows(range(1000), 0.05, seed=1)) == 50


def test_the_seed_chooses_other_rows() -> None:
    assert held_out_rows(range(100), 0.1, seed=1) != held_out_rows(range(100), 0.1, seed=2)


def test_the_place_of_a_row_does_not_matter() -> None:
    keys = list(range(100))
    chosen = {keys[index] for index in held_out_rows(keys, 0.1, seed=1)}
    keys.reverse()
    assert {keys[index] for index in held_out_rows(keys, 0.1, seed=1)} == chosen


def test_of_rows_that_are_all_equal_none_is_held_out() -> None:
    assert held_out_rows([5] * 100, 0.1, seed=1) == set()


def test_rows_are_equal_in_any_order_of_keys_and_unread_columns() -> None:
    lines = (
        b'{"id": 1, "prompt": "2 + 2?", "completion": "4"}',
        b'{"completion":"4",  "prompt":"2 + 2?"}',
        b'{"prompt": "2 + 2?", "completion": "5"}',
    )
    one, same, other = (content_key(content_of(line, "sft")) for line in lines)
    assert one == same
    assert one != other


def test_the_app_and_the_training_program_hold_out_the_same_rows(tmp_path: Path) -> None:
    source = _text_rows(tmp_path / "rows.jsonl", [number % 25 for number in range(200)])
    train, held_out = _split(tmp_path, source, 0.2, seed=3)
    rows = read_rows(tmp_path, "rows.jsonl", "", 0.2, 3, stage="cpt")
    assert set(rows.train["text"]) == train
    assert rows.eval is not None
    assert set(rows.eval["text"]) == held_out


def test_equal_rows_of_two_files_are_on_one_side(tmp_path: Path) -> None:
    sources = [(_text_rows(tmp_path / f"{name}.jsonl", range(50)), 1.0) for name in "ab"]
    train, held_out = tmp_path / "train.jsonl", tmp_path / "eval.jsonl"
    done = compose(sources, train, Selection(0, 0.1, stage="cpt"), held_out)
    assert done == Composed((45, 45), 10)
    assert find_leak(train, held_out, "cpt").lines == []


def test_a_leaked_row_is_known_however_it_is_written(tmp_path: Path) -> None:
    train, held_out = tmp_path / "train.jsonl", tmp_path / "eval.jsonl"
    train.write_text('{"prompt": "a", "completion": "b"}\n')
    held_out.write_text('\n{"completion": "b", "prompt": "a", "id": 3}\n{"prompt": "c"}\n')
    leak = find_leak(train, held_out, "sft")
    assert leak.lines == [2]
    assert leak.num_eval_rows == 2
    assert not leak.is_total


def test_the_program_says_which_part_is_trained_on_too(tmp_path: Path) -> None:
    _text_rows(tmp_path / "train.jsonl", range(30))
    _text_rows(tmp_path / "eval.jsonl", range(28, 33))
    rows = read_rows(tmp_path, "train.jsonl", "eval.jsonl", 0, 1, stage="cpt")
    assert rows.leak.startswith("The evaluation data has 2 rows that the training data has too")


@pytest.mark.parametrize(("num_leaked", "begins"), [(0, ""), (1, "The eval"), (3, "Every row")])
def test_a_leak_is_said_by_its_extent(num_leaked: int, begins: str) -> None:
    assert leak_sentence(num_leaked, 3)[:8] == begins[:8]


def test_a_row_nested_too_deeply_is_known_by_its_bytes() -> None:
    line = b'{"text": ' + b"[" * 100_000
    assert content_of(line, "cpt") == line


def test_content_is_read_from_json_of_any_characters() -> None:
    row = {"text": "\ud800 naïve 世界"}
    assert content_key(row) == content_key(json.loads(json.dumps(row)))
