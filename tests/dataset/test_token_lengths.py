"""Effects of a maximum length on rows, and the jobs that are refused for them."""

from pathlib import Path

import numpy as np
import pytest

from core.dataset.token_lengths import NEVER, RowLengths, length_problems
from core.job import JobSpec

Row = tuple[int, int | None]
"""(tokens, the first of them in the loss); those after it are in the loss too."""


def lengths(*rows: Row, unreadable: int = 0, generates: bool = False) -> RowLengths:
    found = RowLengths(len(rows) + unreadable, generates)
    numbers = []
    for size, first in rows:
        numbers.append((size, NEVER, 0, size) if first is None else (size, first, size, size))
    found.extend(np.array(numbers, dtype=np.int32).tobytes(), unreadable)
    return found


def job(max_length: int, **fields: object) -> JobSpec:
    return JobSpec.parse({"max_length": max_length} | fields)


@pytest.mark.parametrize("limit", [1, 8, 100, 299, 1000])
def test_numbers_for_any_maximum_are_those_of_counting(limit: int) -> None:
    random = np.random.default_rng(0)
    sizes = [int(size) for size in random.integers(1, 300, 500)]
    rows = [(size, int(random.integers(size)) if size % 7 else None) for size in sizes]
    answered = [(size, first) for size, first in rows if first is not None]
    at = lengths(*rows).at(limit)
    assert at.truncated_rows == sum(size > limit for size in sizes)
    assert at.lost_answer_rows == sum(first >= limit for _size, first in answered)
    assert at.cut_answer_rows == sum(first < limit < size for size, first in answered)
    assert at.fully_masked_rows == at.lost_answer_rows + len(rows) - len(answered)
    assert at.mean_tokens == pytest.approx(np.mean(np.minimum(sizes, limit)))


def test_percentiles_and_histogram_do_not_move_with_the_maximum() -> None:
    found = lengths(*[(size, 0) for size in range(1, 101)])
    short, long = found.at(8), found.at(80)
    assert (short.p50, short.p95, short.max) == (50, 95, 100)
    assert short.histogram == long.histogram
    assert sum(bin["rows"] for bin in short.histogram) == 100


def test_lengths_grow_between_two_looks() -> None:
    found = lengths((10, 0))
    found.rows = 3
    assert found.at(8).measured == 1
    assert not found.is_complete
    found.extend(np.array([30, 0, 30, 30], dtype=np.int32).tobytes(), 1)
    assert found.at(8).max == 30
    assert found.at(8).is_complete


def test_lengths_can_be_kept(tmp_path: Path) -> None:
    found = lengths((10, 5), (20, None))
    found.write(tmp_path / "kept.npy")
    assert RowLengths.read(tmp_path / "kept.npy", 2).at(8) == found.at(8)


def test_lengths_of_another_file_are_not_taken(tmp_path: Path) -> None:
    lengths((10, 5), (20, None)).write(tmp_path / "kept.npy")
    with pytest.raises(ValueError, match="no lengths of 1 rows"):
        RowLengths.read(tmp_path / "kept.npy", 1)


def test_a_file_of_an_earlier_version_is_not_taken(tmp_path: Path) -> None:
    np.save(tmp_path / "kept.npy", np.zeros(6, dtype=np.int32))
    with pytest.raises(ValueError, match="holds no lengths"):
        RowLengths.read(tmp_path / "kept.npy", 2)


def test_no_length_of_no_row_is_zero() -> None:
    found = lengths().at(8)
    assert (found.p95, found.max, found.mean_tokens) == (0, 0, 0.0)


@pytest.mark.parametrize(
    ("rows", "field", "says"),
    [
        ([(10, None), (9, None)], "dataset", "no row has a token that counts"),
        ([(30, 20), (30, 25)], "max_length", "cut off the answer of every row"),
        ([(30, 20)] * 2 + [(30, 5)] * 8, "max_length", "2 of 10 rows (20.0%), more than 10.0%"),
    ],
)
def test_a_job_with_too_little_to_learn_is_refused(rows: list[Row], field: str, says: str) -> None:
    (problem,) = length_problems(lengths(*rows), job(16))
    assert problem.field == field
    assert says in problem.problem


def test_the_length_that_is_offered_keeps_enough_answers() -> None:
    found = lengths(*[(100, first) for first in range(10, 30)])
    (problem,) = length_problems(found, job(16, max_lost_answers=0.1))
    assert "set max_length to 28 or more" in problem.fix
    assert length_problems(found, job(28, max_lost_answers=0.1)) == ()
    assert length_problems(found, job(27, max_lost_answers=0.1)) != ()


def test_a_job_may_allow_more_lost_answers() -> None:
    found = lengths((30, 20), (30, 5))
    assert length_problems(found, job(16, max_lost_answers=0.5)) == ()
    assert length_problems(found, job(16, max_lost_answers=0.4)) != ()


def test_rows_without_answers_lose_none() -> None:
    assert length_problems(lengths((30, None), generates=True), job(16)) == ()
