"""Tables of docs/where_memory_goes.md: those that the benchmark prints."""

import pytest

from benchmarks import where_memory_goes
from tests.builders.paths import ROOT

DOCUMENT = (ROOT / "docs" / "where_memory_goes.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("table", [where_memory_goes.by_card, where_memory_goes.by_stage])
def test_the_document_shows_what_is_estimated(table) -> None:
    assert "\n".join(table()) in DOCUMENT


def test_the_drawing_is_of_the_same_estimates() -> None:
    drawn = (ROOT / "docs" / "stages.svg").read_text(encoding="utf-8")
    assert drawn == where_memory_goes.drawing()
