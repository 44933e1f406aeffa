"""Test the benchmark of monitoring: the shares it computes, and that turns are of two kinds."""

import json
from pathlib import Path

import pytest

from benchmarks.watching_overhead import (
    make_job,
    measure,
    own_share,
    rank_of_interval,
    share_by_turns,
    text_lines,
    to_json,
)


def turn(is_watched: bool, seconds: float, own: float = 0.0) -> dict[str, float]:
    return {
        "is_watched": is_watched,
        "clock": 2 * seconds,
        "processor": seconds,
        "own_clock": 4 * own,
        "own_processor": own,
    }


TURNS = [
    turn(True, 1.01, 0.01),
    turn(False, 1),
    turn(False, 2),
    turn(True, 2.06, 0.06),
    turn(True, 1.02, 0.02),
    turn(False, 1),
]


def test_the_time_of_the_monitoring_code_is_a_share_of_the_rest() -> None:
    assert own_share(TURNS, "processor").share == pytest.approx((0.01 + 0.03 + 0.02) / 3)
    found = own_share(TURNS, "clock")
    assert found.low < found.share < found.high
    assert found.share > 0.03


def test_a_watched_turn_is_compared_with_the_plain_one_beside_it() -> None:
    found = share_by_turns(TURNS, "processor")
    assert (found.low, found.share, found.high) == pytest.approx((0.01, 0.02, 0.03))


@pytest.mark.parametrize(("count", "rank"), [(1, 0), (5, 0), (6, 0), (9, 1), (20, 5), (40, 13)])
def test_the_interval_of_a_median_is_that_of_the_sign_test(count: int, rank: int) -> None:
    """Check the ranks against published tables of the sign test."""
    assert rank_of_interval(count) == rank


def test_all_shares_are_printed() -> None:
    lines = list(text_lines(TURNS))
    assert lines[1].startswith("processor  30.0 of 1363 ms a step: +2.00%")
    assert to_json(TURNS)["turns"]["share"] == pytest.approx(0.02)


@pytest.mark.slow
@pytest.mark.training
def test_the_trainer_is_watched_and_plain_by_turns(tmp_path: Path) -> None:
    job = make_job(tmp_path, num_pairs=2, num_steps=1, logging_steps=1)
    run = tmp_path / "run"
    turns = measure(run, job, num_pairs=2, num_steps=1)
    assert [each["is_watched"] for each in turns] == [True, False, False, True]
    assert [each["own_processor"] > 0 for each in turns] == [True, False, False, True]
    assert steps_in(run / "metrics.jsonl") == [*range(1, 13), 17, 18, 19]
    assert steps_in(run / "unwatched.jsonl") == [13, 14, 15, 16]


def steps_in(path: Path) -> list[int]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["step"] for line in lines]
