"""Test which rank is the cause when none gets on."""

from typing import Any

import pytest

from core.training.ranks.stuck import find_stuck

NAMES = {index: f"Process {index + 1} of 3, on device {index}" for index in range(3)}


def says(parts: int, *, waits: bool = False, activity: str = "forward") -> dict[str, Any]:
    """Return what a rank says that stands still."""
    place = f"line {parts} of trainer.py"
    return {
        "seconds": 31,
        "parts": parts,
        "activity": activity,
        "place": place,
        "waits": waits,
    }


@pytest.mark.parametrize(
    ("words", "ranks"),
    [
        ([says(7, waits=True), says(7), says(7, waits=True)], [1]),  # in one forward pass
        ([says(8), says(7), says(8)], [1]),  # all wait for the GPU, which shows in no stack
        ([says(8, waits=True), says(8, waits=True), says(9)], [2]),  # the first writes, say
        ([says(8), says(7), says(7)], [1, 2]),
        ([says(8, waits=True), says(9, waits=True), says(8, waits=True)], [0, 1, 2]),
        ([says(8), says(8), says(8)], [0, 1, 2]),
    ],
)
def test_the_rank_that_waits_for_no_other_is_the_cause(
    words: list[dict[str, Any]], ranks: list[int]
) -> None:
    assert find_stuck(dict(enumerate(words)), NAMES).ranks == ranks


def test_the_sentence_names_rank_part_and_place() -> None:
    found = find_stuck({0: says(8), 1: says(7, activity="train"), 2: says(8)}, NAMES)
    assert found.sentence.startswith(
        "Process 2 of 3, on device 1, has come no further for 31 s while training (line 7 of "
        "trainer.py); the others waited for it, so all were ended."
    )


def test_the_sentence_says_that_ranks_wait_for_each_other() -> None:
    found = find_stuck({0: says(8, waits=True), 1: says(9, waits=True)}, NAMES)
    assert found.sentence.startswith(
        "The processes wait for each other, for 31 s: process 1 in the forward pass (line 8 of "
        "trainer.py) and process 2 in the forward pass (line 9 of trainer.py). All were ended."
    )


def test_a_rank_that_is_left_alone_is_the_cause() -> None:
    assert find_stuck({2: says(8, waits=True)}, NAMES).ranks == [2]


def test_the_sentence_says_what_to_do() -> None:
    assert "Resume the run" in find_stuck({0: says(8), 1: says(7)}, NAMES).sentence
