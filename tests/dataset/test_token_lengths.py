"""What a maximum length does to rows, for any length at once, and which jobs are refused for it."""

from pathlib import Path

import numpy as np
import pytest

from core.dataset import RowLengths, refusals
from core.dataset.token_lengths import NEVER
from core.job import JobSpec


def lengths(
    *rows: tuple[int, int | None], unreadable: int = 0, is_drawn: bool = False
) -> RowLengths:
    """Rows of (tokens, the first of them in the loss); all that follow it are in the loss too."""
    found = RowLengths(len(rows) + unreadable, is_drawn)
    numbers = [
        (size, NEVER if first is None else first, 0 if first is None else size, size)
        for size, first in rows
    ]
    found.extend(np.array(numbers, dtype=np.int32).tobytes(), unreadable)
    return found


def job(max_length: int, **fields: object) -> JobSpec:
    return JobSpec.parse({"max_length": max_length} | fields)


def test_numbers_for_any_maximum_are_those_of_counting() -> None:
    chance = np.random.default_rng(0)
    rows = [
        (int(size), int(chance.integers(size)) if size % 7 else None)
        for size in chance.integers(1, 300, 500)
    ]
    found = lengths(*rows)
    for most in (1, 8, 100, 299, 1000):
        at = found.at(most)
        answered = [(size, first) for size, first in rows if first is not None]
        assert at.truncated_rows == sum(size > most for size, _first in rows)
        assert at.lost_answer_rows == sum(first >= most for _size, first in answered)
        assert at.cut_answer_rows == sum(first < most < size for size, first in answered)
        assert at.fully_masked_rows == at.lost_answer_rows + len(rows) - len(answered)
        assert at.mean_tokens == pytest.approx(
            sum(min(size, most) for size, _first in rows) / len(rows)
        )


def test_percentiles_and_histogram_do_not_move_with_the_maximum() -> None:
    found = lengths(*[(size, 0) for size in range(1, 101)])
    assert (found.at(8).p50, found.at(8).p95, found.at(8).max) == (50, 95, 100)
    assert found.at(8).histogram == found.at(80).histogram
    assert sum(bin["rows"] for bin in found.at(8).histogram) == 100


def test_lengths_grow_while_they_are_looked_at() -> None:
    found = lengths((10, 0))
    found.rows = 3
    assert found.at(8).measured == 1 and not found.is_complete
    found.extend(np.array([30, 0, 30, 30], dtype=np.int32).tobytes(), 1)
    assert found.at(8).max == 30 and found.at(8).is_complete


def test_lengths_can_be_kept(tmp_path: Path) -> None:
    found = lengths((10, 5), (20, None))
    found.write(tmp_path / "kept.npy")
    assert RowLengths.read(tmp_path / "kept.npy", 2).at(8) == found.at(8)
    with pytest.raises(ValueError, match="no lengths of 1 rows"):
        RowLengths.read(tmp_path / "kept.npy", 1)


def test_the_fill_is_the_share_of_a_full_row() -> None:
    assert lengths((10, 0), (50, 0)).at(20).mean_fill == 0.75


def test_no_length_of_no_row_is_zero() -> None:
    assert (lengths().at(8).p95, lengths().at(8).max, lengths().at(8).mean_tokens) == (0, 0, 0.0)


@pytest.mark.parametrize(
    ("rows", "field", "says"),
    [
        ([(10, None), (9, None)], "dataset", "no row has a token that counts"),
        ([(30, 20), (30, 25)], "max_length", "cut off the answer of every row"),
        ([(30, 20)] * 2 + [(30, 5)] * 8, "max_length", "2 of 10 rows (20.0%), more than 10.0%"),
    ],
)
def test_a_job_with_too_little_to_learn_is_refused(
    rows: list[tuple[int, int | None]], field: str, says: str
) -> None:
    (problem,) = refusals(lengths(*rows), job(16))
    assert problem.field == field and says in problem.problem


def test_the_length_that_is_offered_keeps_enough_answers() -> None:
    found = lengths(*[(100, first) for first in range(10, 30)])
    (problem,) = refusals(found, job(16, max_lost_answers=0.1))
    assert "set max_length to 28 or more" in problem.fix
    assert (
        refusals(found, job(28, max_lost_answers=0.1))
        == ()
        != refusals(found, job(27, max_lost_answers=0.1))
    )


def test_lost_answers_are_allowed_as_far_as_the_job_says() -> None:
    found = lengths((30, 20), (30, 5))
    assert (
        refusals(found, job(16, max_lost_answers=0.5))
        == ()
        != refusals(found, job(16, max_lost_answers=0.4))
    )


def test_rows_whose_answers_are_drawn_lose_none() -> None:
    assert refusals(lengths((30, None), is_drawn=True), job(16)) == ()
