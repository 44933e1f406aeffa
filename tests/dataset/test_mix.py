"""What a run is trained on: files by weight, mixed, a sample, a share held out; the same for the same seed."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.dataset import Composed, Share, compose, parse_mix
from core.job import DatasetError
from core.training.data.rows import read_rows


def write(path: Path, num_rows: int, name: str = "") -> Path:
    """A file of rows that say where they come from."""
    path.write_text(
        "".join(
            json.dumps({"text": f"{name or path.stem} {row}"}) + "\n" for row in range(num_rows)
        )
    )
    return path


def texts(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_bytes().splitlines()]


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
    done = compose([(write(tmp_path / "a.jsonl", 40), weight)], tmp_path / "out.jsonl")
    times = Counter(Counter(texts(tmp_path / "out.jsonl")).values())
    assert times == counts and done.rows == (40 * weight,)


def test_one_file_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\r\n\n{"text":  "b"}')
    assert compose([(tmp_path / "a.jsonl", 1)], tmp_path / "out.jsonl") == Composed((2,), 0)
    assert (tmp_path / "out.jsonl").read_bytes() == b'{"text": "a"}\r\n\n{"text":  "b"}\n'


def test_several_files_are_mixed_and_counted(tmp_path: Path) -> None:
    sources = [
        (write(tmp_path / f"{name}.jsonl", 30), weight)
        for name, weight in (("a", 1.0), ("b", 0.5), ("c", 2.0))
    ]
    done = compose(sources, tmp_path / "out.jsonl")
    found = texts(tmp_path / "out.jsonl")
    assert done.rows == (30, 15, 60) and Counter(text[0] for text in found) == {
        "a": 30,
        "b": 15,
        "c": 60,
    }
    assert found != sorted(found) and set(texts(tmp_path / "a.jsonl")) <= set(found)


def test_the_same_seed_writes_the_same_file(tmp_path: Path) -> None:
    sources = [(write(tmp_path / f"{name}.jsonl", 30), 0.5) for name in "ab"]
    for name, seed in (("one", 7), ("two", 7), ("three", 8)):
        compose(sources, tmp_path / f"{name}.jsonl", Share(seed=seed))
    one, two, three = (
        (tmp_path / f"{name}.jsonl").read_bytes() for name in ("one", "two", "three")
    )
    assert one == two != three


def test_a_row_limit_takes_a_sample_in_the_order_of_the_file(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", 100)
    assert compose(
        [(tmp_path / "a.jsonl", 1)], tmp_path / "out.jsonl", Share(max_rows=10)
    ).rows == (10,)
    numbers = [int(text.split()[1]) for text in texts(tmp_path / "out.jsonl")]
    assert numbers == sorted(set(numbers)) and numbers != list(range(10))


def test_no_held_out_row_is_trained_on_however_often_rows_are_repeated(tmp_path: Path) -> None:
    sources = [(write(tmp_path / f"{name}.jsonl", 50), 3.0) for name in "ab"]
    done = compose(
        sources, tmp_path / "out.jsonl", Share(eval_fraction=0.1), tmp_path / "eval.jsonl"
    )
    train, held_out = texts(tmp_path / "out.jsonl"), texts(tmp_path / "eval.jsonl")
    assert (
        done.eval_rows == len(held_out) == 10
        and not set(train) & set(held_out)
        and len(train) == 3 * 90
    )


def test_a_quick_try_holds_out_as_little_as_it_trains_on(tmp_path: Path) -> None:
    share = Share(max_rows=40, eval_fraction=0.1)
    done = compose(
        [(write(tmp_path / "a.jsonl", 1000), 1)],
        tmp_path / "out.jsonl",
        share,
        tmp_path / "eval.jsonl",
    )
    assert (done.rows, done.eval_rows) == ((40,), 4)


def test_of_a_few_rows_none_is_held_out(tmp_path: Path) -> None:
    share = Share(eval_fraction=0.5)
    done = compose(
        [(write(tmp_path / "a.jsonl", 19), 1)],
        tmp_path / "out.jsonl",
        share,
        tmp_path / "eval.jsonl",
    )
    assert done == Composed((19,), 0) and not (tmp_path / "eval.jsonl").exists()


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


def test_ways_of_writing_that_become_the_same_are_mixed_and_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(QUESTION)
    (tmp_path / "b.jsonl").write_text(ALPACA)
    compose([(tmp_path / "a.jsonl", 1), (tmp_path / "b.jsonl", 2)], tmp_path / "out.jsonl")
    assert len(read_rows(tmp_path, "out.jsonl", "", 0.0, 0).train) == 3


@pytest.mark.parametrize("other", [PLAIN, CHAT, '{"text": "a"}', '{"foo": 1}'])
def test_files_of_different_kinds_are_refused_in_words(tmp_path: Path, other: str) -> None:
    (tmp_path / "a.jsonl").write_text(QUESTION)
    (tmp_path / "b.jsonl").write_text(other)
    with pytest.raises(
        DatasetError,
        match=r"a\.jsonl holds prompt-completion rows \(conversational, without tools\) but b\.jsonl",
    ):
        compose([(tmp_path / "a.jsonl", 1), (tmp_path / "b.jsonl", 1)], tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.lists(st.text(min_size=1), min_size=1, max_size=8), min_size=1, max_size=3),
    seed=st.integers(0, 9),
)
def test_mixed_rows_reach_the_trainer_unchanged(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("mix")
    rows = [[f"{text}." for text in texts] for texts in rows]
    for number, texts_of_file in enumerate(rows):
        lines = (json.dumps({"text": text}, ensure_ascii=seed % 2 == 0) for text in texts_of_file)
        (folder / f"{number}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    compose(
        [(folder / f"{number}.jsonl", 1) for number in range(len(rows))],
        folder / "out.jsonl",
        Share(seed=seed),
    )
    found = read_rows(folder, "out.jsonl", "", 0.0, 0).train
    assert Counter(row["text"] for row in found) == Counter(
        text for texts in rows for text in texts
    )
