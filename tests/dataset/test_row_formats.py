"""Row formats: every example is what it claims to be, and the training reads it."""

import json

import pytest

from core.training.contract.row_columns import shared_length
from core.training.contract.row_formats import (
    ROW_FORMATS,
    ROW_FORMATS_BY_ID,
    RowFormat,
    accepts,
    find_row_format,
    find_row_layout,
)
from core.training.contract.row_reader import BadRow, read_columns, read_row
from core.training.contract.stages import STAGES

EVERY_FORMAT = pytest.mark.parametrize("row_format", ROW_FORMATS, ids=lambda each: each.id)


def usual_stage(row_format: RowFormat) -> str:
    return next(stage for stage in STAGES if accepts(stage, row_format))


@EVERY_FORMAT
def test_an_example_is_of_its_own_format(row_format: RowFormat) -> None:
    example = json.loads(row_format.example)
    assert find_row_format(example, usual_stage(row_format)) is row_format


@EVERY_FORMAT
def test_an_example_has_no_faults(row_format: RowFormat) -> None:
    row, stage = json.loads(row_format.example), usual_stage(row_format)
    layout = find_row_layout(row, stage)
    assert layout
    assert not read_columns(row, layout, stage).faults


@EVERY_FORMAT
def test_an_example_is_read_for_every_stage_that_accepts_it(row_format: RowFormat) -> None:
    for stage in STAGES:
        if accepts(stage, row_format):
            assert read_row(row_format.example.encode(), stage)


@EVERY_FORMAT
def test_a_row_without_one_of_its_columns_is_not_of_the_format(row_format: RowFormat) -> None:
    for column in row_format.columns:
        others = set(json.loads(row_format.example)) - {column}
        assert find_row_format(others, usual_stage(row_format)) is not row_format


@pytest.mark.parametrize(
    ("chosen", "rejected", "length"),
    [
        ("so it be", "so he is", 2),
        ("abc", "abd", 2),
        ("abc", "abcd", 2),
        ("a", "a", 0),
        ("", "a", 0),
        ([1, 2, 3], [1, 2, 4], 2),
        ([1, 2], [1, 2, 3], 1),
    ],
)
def test_a_shared_beginning_leaves_something_of_both(
    chosen: str, rejected: str, length: int
) -> None:
    assert shared_length(chosen, rejected) == length


def test_a_bad_row_says_where_what_and_what_to_do() -> None:
    row = b'{"messages": [{"role": "user", "content": 7}]}'
    with pytest.raises(BadRow, match=r"^messages\[0\].content: is a number, not text; give the"):
        read_row(row)


@pytest.mark.parametrize(
    ("completions", "said"),
    [
        ([], "holds 0 answers, not two"),
        ("none", "holds no list of answers, not two"),
        (
            [{"score": 1}, {"score": 0, "completion": "5"}],
            r"\[0\]: is not an answer with its score",
        ),
        ([{"score": 1, "completion": each} for each in "45"], "has two answers of one score"),
        ([{"score": n, "completion": "4"} for n in (0, 1)], "completion: is the chosen answer"),
    ],
)
def test_scored_answers_must_be_two_of_different_scores(completions: object, said: str) -> None:
    messages = [{"role": "user", "content": "2 + 2?"}]
    row = {"messages": messages, "completions": completions}
    with pytest.raises(BadRow, match=said):
        read_row(json.dumps(row).encode(), "dpo")


def test_scored_answers_are_no_data_for_sft() -> None:
    row = ROW_FORMATS_BY_ID["preference of scores"].example.encode()
    with pytest.raises(BadRow, match="is preference data; choose reward, dpo"):
        read_row(row, "sft")
