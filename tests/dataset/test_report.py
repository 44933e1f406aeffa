"""Reports on several files of one job."""

import pytest

from core.dataset.report import DatasetReport, require_one_kind
from core.job import SpecError

TEXTS = DatasetReport(dataset_type="language modeling", format="standard")
CHATS = DatasetReport(dataset_type="language modeling", format="conversational")


def test_files_of_one_kind_are_trained_on_together() -> None:
    require_one_kind([("dataset", "a.jsonl", CHATS), ("mix", "b.jsonl", CHATS)])


def test_files_of_differing_kinds_are_named_with_their_field() -> None:
    with pytest.raises(SpecError) as caught:
        require_one_kind([("dataset", "a.jsonl", TEXTS), ("eval_dataset", "b.jsonl", CHATS)])
    assert str(caught.value) == (
        "eval_dataset: a.jsonl holds language modeling rows (standard) but b.jsonl holds language "
        "modeling rows (conversational); give files whose rows are of one type and format"
    )
