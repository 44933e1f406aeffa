"""Rows of files by weight, mixed, sampled, split; the same for the same seed."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.dataset.rewrite import Composed, Selection, compose, parse_mix
from core.job import DatasetError
from tests.builders.dataset_files import rows_in, trained_rows, write_json_rows


def write(path: Path, num_rows: int) -> Path:
    """Write rows that say which file they are from."""
    return write_json_rows(path, ({"text": f"{path.stem} {row}"} for row in range(num_rows)))


def texts(path: Path) -> list[str]:
    return [row["text"] for row in rows_in(path)]


def test_a_mix_is_read_line_by_line() -> None:
    found = parse_mix("a.jsonl = 0.5\n\n  /data/b = c.jsonl=2\nd.jsonl")
    assert found == (
        (Path("a.jsonl"), 0.5),
        (Path("/data/b = c.jsonl"), 2.0),
        (Path("d.jsonl"), 1.0),
    )


@pytest.mark.parametrize(
    "line", ["a = b", "a = 0", "a = -1", "a = nan", "a = inf", "a = 1000", "= 1", "a ="]
)
def test_a_line_of_a_mix_that_cannot_be_read_is_named(line: str) -> None:
    with pytest.raises(ValueError, match="line 2"):
        parse_mix(f"fine.jsonl = 1\n{line}")


@pytest.mark.parametrize(
    ("weight", "counts"), [(1, {1: 40}), (2, {2: 40}), (0.5, {1: 20}), (1.25, {1: 30, 2: 10})]
)
def test_a_weight_says_how_often_rows_are_there(
    tmp_path: Path, weight: float, counts: dict[int, int]
) -> None:
    target = tmp_path / "out.jsonl"
    done = compose([(write(tmp_path / "a.jsonl", 40), weight)], target)
    assert Counter(Counter(texts(target)).values()) == counts
    assert done.rows == (40 * weight,)


def test_one_file_stays_as_it_is(tmp_path: Path) -> None:
    source, target = tmp_path / "a.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(b'{"text": "a"}\r\n\n{"text":  "b"}')
    assert compose([(source, 1)], target) == Composed((2,), 0)
    assert target.read_bytes() == b'{"text": "a"}\r\n\n{"text":  "b"}\n'


def test_several_files_are_mixed_and_counted(tmp_path: Path) -> None:
    weights = {"a": 1.0, "b": 0.5, "c": 2.0}
    sources = [(write(tmp_path / f"{name}.jsonl", 30), weights[name]) for name in weights]
    done = compose(sources, tmp_path / "out.jsonl")
    found = texts(tmp_path / "out.jsonl")
    assert done.rows == (30, 15, 60)
    assert Counter(text[0] for text in found) == {"a": 30, "b": 15, "c": 60}
    assert found != sorted(found)
    assert set(texts(tmp_path / "a.jsonl")) <= set(found)


def test_the_same_seed_writes_the_same_file(tmp_path: Path) -> None:
    sources = [(write(tmp_path / f"{name}.jsonl", 30), 0.5) for name in "ab"]
    files = []
    for number, seed in enumerate((7, 7, 8)):
        target = tmp_path / f"out-{number}.jsonl"
        compose(sources, target, Selection(seed=seed))
        files.append(target.read_bytes())
    assert files[0] == files[1]
    assert files[0] != files[2]


def test_a_row_limit_takes_a_sample_in_the_order_of_the_file(tmp_path: Path) -> None:
    source, target = write(tmp_path / "a.jsonl", 100), tmp_path / "out.jsonl"
    assert compose([(source, 1)], target, Selection(max_rows=10)).rows == (10,)
    numbers = [int(text.split()[1]) for text in texts(target)]
    assert numbers == sorted(set(numbers))
    assert numbers != list(range(10))


def test_no_held_out_row_is_trained_on_however_often_rows_repeat(tmp_path: Path) -> None:
    sources = [(write(tmp_path / f"{name}.jsonl", 50), 3.0) for name in "ab"]
    target, eval_target = tmp_path / "out.jsonl", tmp_path / "eval.jsonl"
    done = compose(sources, target, Selection(eval_fraction=0.1), eval_target)
    assert done.eval_rows == len(texts(eval_target)) == 10
    assert not set(texts(target)) & set(texts(eval_target))
    assert len(texts(target)) == 3 * 90


def test_a_quick_try_holds_out_as_little_as_it_trains_on(tmp_path: Path) -> None:
    sources = [(write(tmp_path / "a.jsonl", 1000), 1)]
    selection = Selection(max_rows=40, eval_fraction=0.1)
    done = compose(sources, tmp_path / "out.jsonl", selection, tmp_path / "eval.jsonl")
    assert done == Composed((40,), 4)


def test_of_a_few_rows_none_is_held_out(tmp_path: Path) -> None:
    sources, eval_target = [(write(tmp_path / "a.jsonl", 19), 1)], tmp_path / "eval.jsonl"
    done = compose(sources, tmp_path / "out.jsonl", Selection(eval_fraction=0.5), eval_target)
    assert done == Composed((19,), 0)
    assert not eval_target.exists()


def test_arrays_and_byte_order_marks_are_mixed_as_lines(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"text": "a\\n1"},\n {"text": "a 2"}]')
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "b"}\r\n')
    compose([(tmp_path / "a.json", 1), (tmp_path / "b.jsonl", 1)], tmp_path / "out.jsonl")
    assert sorted(texts(tmp_path / "out.jsonl")) == ["a\n1", "a 2", "b"]
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", "b.jsonl", "out.jsonl"}


QUESTION = '{"question": "a", "answer": "b"}'
ALPACA = '{"instruction": "a", "output": "b"}'
PLAIN = '{"prompt": "a", "completion": "b"}'
CHAT = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'


def test_formats_that_become_the_same_columns_are_mixed(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(QUESTION)
    (tmp_path / "b.jsonl").write_text(ALPACA)
    compose([(tmp_path / "a.jsonl", 1), (tmp_path / "b.jsonl", 2)], tmp_path / "out.jsonl")
    assert len(trained_rows(tmp_path / "out.jsonl")) == 3


@pytest.mark.parametrize("other", [PLAIN, CHAT, '{"text": "a"}', '{"foo": 1}'])
def test_files_of_different_formats_are_refused_in_words(tmp_path: Path, other: str) -> None:
    (tmp_path / "a.jsonl").write_text(QUESTION)
    (tmp_path / "b.jsonl").write_text(other)
    target = tmp_path / "out.jsonl"
    says = r"a\.jsonl holds prompt-completion rows \(conversational\) but b\.jsonl"
    with pytest.raises(DatasetError, match=says):
        compose([(tmp_path / "a.jsonl", 1), (tmp_path / "b.jsonl", 1)], target)
    assert not target.exists()


@settings(max_examples=40, deadline=None)
@given(
    files=st.lists(st.lists(st.text(min_size=1), min_size=1, max_size=8), min_size=1, max_size=3),
    seed=st.integers(0, 9),
)
def test_mixed_rows_reach_the_trainer_unchanged(
    tmp_path_factory: pytest.TempPathFactory, files: list[list[str]], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("mix")
    written = [f"{text}." for file in files for text in file]
    for number, file in enumerate(files):
        rows = [json.dumps({"text": f"{text}."}, ensure_ascii=seed % 2 == 0) for text in file]
        (folder / f"{number}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    sources = [(folder / f"{number}.jsonl", 1) for number in range(len(files))]
    compose(sources, folder / "out.jsonl", Selection(seed=seed))
    found = [row["text"] for row in trained_rows(folder / "out.jsonl")]
    assert Counter(found) == Counter(written)
