"""Accuracy of the estimate against published measurements, which may not get worse."""

import pytest

from benchmarks.memory_accuracy import Accuracy, accuracies
from tests.measured.rows import read_rows


@pytest.fixture(scope="module")
def scores() -> dict[tuple[str, str], Accuracy]:
    """Return the accuracy on the fully specified Hugging Face rows, by group and metric."""
    rows = [row for row in read_rows() if "HF+PEFT" in row.group]
    return {(score.group, score.metric): score for score in accuracies(rows)}


def test_allocated_peaks_on_a_t4_are_right_to_a_permille(scores) -> None:
    score = scores["T4 HF+PEFT", "allocated"]
    assert score.n >= 51
    assert score.median <= 0.001
    assert score.worst <= 0.012


def test_reserved_peaks_on_a_t4_are_right_to_a_percent(scores) -> None:
    score = scores["T4 HF+PEFT", "reserved"]
    assert score.n >= 32
    assert score.median <= 0.01
    assert score.p90 <= 0.05
    assert score.worst <= 0.07


def test_reserved_peaks_of_raced_loads_are_right_in_most_cases(scores) -> None:
    score = scores["T4 HF+PEFT, raced load", "reserved"]
    assert score.n >= 17
    assert score.median <= 0.012
    assert score.worst <= 0.13


def test_reserved_peaks_of_padded_batches_are_right_to_a_percent(scores) -> None:
    score = scores["L40S HF+PEFT", "reserved"]
    assert score.n >= 20
    assert score.median <= 0.005
    assert score.p90 <= 0.03
    assert score.worst <= 0.06
