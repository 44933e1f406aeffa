"""Test what one of several GPUs holds against what others have published."""

import statistics

import pytest

from benchmarks.published_ranks import FSDP1, FSDP2, PublishedRow, rows, table
from tests.builders.paths import ROOT

MAX_MEDIAN_ERROR = 0.06
MAX_ERROR = 0.1


@pytest.fixture(scope="module")
def published() -> list[PublishedRow]:
    return list(rows())


def errors(published: list[PublishedRow], group: str) -> list[float]:
    return [abs(row.error) for row in published if row.group == group]


def test_the_rows_of_fsdp2_are_met(published: list[PublishedRow]) -> None:
    found = errors(published, FSDP2)
    assert len(found) == 5
    assert statistics.median(found) <= MAX_MEDIAN_ERROR
    assert max(found) <= MAX_ERROR


def test_the_rows_of_fsdp1_are_told_apart(published: list[PublishedRow]) -> None:
    assert len(errors(published, FSDP1)) == 11


def test_the_documented_table_is_that_of_the_simulation(published: list[PublishedRow]) -> None:
    documented = (ROOT / "docs" / "several_gpus.md").read_text(encoding="utf-8")
    missing = [line for line in table(published) if line not in documented]
    assert missing == []
