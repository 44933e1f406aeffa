"""The program that measures what watching costs: what it makes of the turns, and that these are of two kinds."""

import json
from pathlib import Path

import pytest

from benchmarks.watching_overhead import (
    found_in,
    make_job,
    measure,
    own_share,
    rank_of_interval,
    share_by_turns,
    told,
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


def test_the_time_of_the_watching_code_is_a_share_of_the_rest_of_the_step() -> None:
    assert own_share(TURNS, "processor").share == pytest.approx((0.01 + 0.03 + 0.02) / 3)
    found = own_share(TURNS, "clock")
    assert found.low < found.share < found.high and found.share > 0.03


def test_a_watched_turn_is_compared_with_the_plain_one_beside_it() -> None:
    found = share_by_turns(TURNS, "processor")
    assert (found.low, found.share, found.high) == pytest.approx((0.01, 0.02, 0.03))


@pytest.mark.parametrize(("count", "rank"), [(1, 0), (5, 0), (6, 0), (9, 1), (20, 5), (40, 13)])
def test_the_interval_of_a_median_leaves_out_as_many_values_as_coins_would(
    count: int, rank: int
) -> None:
    assert (
        rank_of_interval(count) == rank
    )  # tables of the sign test: the pair of values before and behind


def test_all_shares_are_told() -> None:
    lines = list(told(TURNS))
    assert lines[1].startswith("processor  30.0 of 1363 ms a step: +2.00%")
    assert found_in(TURNS)["turns"]["share"] == pytest.approx(0.02)


@pytest.mark.slow
@pytest.mark.training
def test_the_trainer_is_watched_and_plain_by_turns(tmp_path: Path) -> None:
    turns = measure(
        tmp_path / "run", make_job(tmp_path, num_pairs=2, num_steps=1, logging_steps=1), 2, 1
    )
    assert [each["is_watched"] for each in turns] == [True, False, False, True]
    assert [each["own_processor"] > 0 for each in turns] == [True, False, False, True]
    steps = [
        [
            json.loads(line)["step"]
            for line in (tmp_path / "run" / name).read_text(encoding="utf-8").splitlines()
        ]
        for name in ("metrics.jsonl", "unwatched.jsonl")
    ]
    assert steps == [[*range(1, 13), 17, 18, 19], [13, 14, 15, 16]]
