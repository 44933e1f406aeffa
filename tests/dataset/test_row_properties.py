"""Properties of rows in any shape: none breaks the reader, and nothing in one is lost silently."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from core.dataset import DatasetReport, check_file
from core.dataset.check.plain_rows import PlainRows
from core.dataset.reading.rows_inside import find_rows_inside
from core.dataset.rewrite.repair import write_lines
from core.training.contract.row_formats import (
    ROW_FORMATS,
    RowLayout,
    accepts,
    find_row_layout,
)
from core.training.contract.row_reader import read_columns, text_format
from core.training.contract.stages import STAGES
from tests.builders.dataset_files import trained_rows, write_json_rows

NAMES = sorted(
    {
        name
        for row_format in ROW_FORMATS
        for part in (row_format.required, row_format.optional)
        for names in part.values()
        for name in names
    }
)
BESIDE = ["images", "label", "id", "ground_truth", "reward_model", "category", "role"]
TRAINED = sorted(stage for stage in STAGES if STAGES[stage].is_trainable)
EVERY_STAGE = st.sampled_from(TRAINED)

word = st.integers(0, 10**6).map(lambda number: f"word{number}")
number = st.sampled_from([0, 1, 0.5, True, False, None])
part = (
    word
    | st.fixed_dictionaries({"type": st.just("text"), "text": word}, optional={"cache": word})
    | st.fixed_dictionaries({"text": word})
    | st.fixed_dictionaries({"type": st.just("image"), "image": word})
    | st.fixed_dictionaries({"type": st.just("thinking"), "thinking": word})
    | st.fixed_dictionaries({"type": st.just("tool_result"), "content": word})
    | st.fixed_dictionaries(
        {"functionCall": st.fixed_dictionaries({"name": word, "args": st.just({})})}
    )
)
content = word | st.lists(part, min_size=1, max_size=2)
role = st.sampled_from(["user", "assistant", "system", "Human", "gpt", "model", "tool"])
more = {
    "weight": number,
    "name": word,
    "note": word,
    "images": word,
    "reasoning": word,
    "function_call": st.fixed_dictionaries({"name": word, "arguments": st.just("{}")}),
}
turn = (
    st.fixed_dictionaries({"role": role, "content": content}, optional=more)
    | st.fixed_dictionaries({"from": role, "value": word}, optional=more)
    | st.fixed_dictionaries({"role": role, "parts": st.lists(part, min_size=1, max_size=2)})
    | st.fixed_dictionaries({"human": word, "assistant": word}, optional={"mood": word})
    | st.tuples(word, word).map(list)
)
question = st.fixed_dictionaries({"role": st.just("user"), "content": content}, optional=more)
answer = st.fixed_dictionaries({"role": st.just("assistant"), "content": content}, optional=more)
turns = st.lists(turn, max_size=3) | st.tuples(question, answer).map(list) | question | answer
tool = st.fixed_dictionaries({"name": word}, optional={"description": word})
value = (
    word
    | turns
    | turns.map(json.dumps)
    | st.lists(tool, max_size=1)
    | st.lists(word, max_size=2)
    | number
    | st.fixed_dictionaries({"messages": turns}, optional={"extra": word})
    | st.fixed_dictionaries({"ground_truth": word})
)


@st.composite
def row_of_a_format(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a row with the columns of a format, of values that often fit, and some others."""
    row_format = draw(st.sampled_from(ROW_FORMATS))
    row = {draw(st.sampled_from(names)): draw(value) for names in row_format.required.values()}
    names = st.sampled_from([*NAMES, *BESIDE])
    return row | draw(st.dictionaries(names, value, max_size=3))


def words_in(value: object) -> set[str]:
    """Return the words of a value, also those inside JSON text."""
    return set(re.findall(r"word\d+", json.dumps(value)))


def report_on(folder: Path, row: Mapping[str, Any], stage: str) -> DatasetReport:
    return check_file(write_json_rows(folder / "rows.jsonl", [row]), stage)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rows")


@settings(max_examples=400, deadline=None)
@given(row=row_of_a_format(), stage=EVERY_STAGE)
def test_what_passes_reaches_the_training(folder: Path, row: dict[str, Any], stage: str) -> None:
    report = report_on(folder, row, stage)
    if report.is_usable:
        is_split = stage == "kto" and report.dataset_type == "preference"
        # One object of lists is a table of columns, so a run copies what the check has read.
        lines = folder / "lines.jsonl"
        lines.unlink(missing_ok=True)
        done = write_lines(folder / "rows.jsonl", lines)
        assert len(trained_rows(done.path, stage)) == report.rows * (1 + is_split)


@settings(max_examples=600, deadline=None)
@given(row=row_of_a_format(), stage=EVERY_STAGE)
def test_every_word_is_read_or_its_column_is_named(
    folder: Path, row: dict[str, Any], stage: str
) -> None:
    assume(find_rows_inside(row) is None)  # else the object is a table, not a row
    report = report_on(folder, row, stage)
    layout = find_row_layout(row, stage)
    if not report.is_usable or layout is None:
        return
    found = read_columns(row, layout, stage).trl_row
    read = words_in(found)
    if isinstance(found.get("prompt"), str) and "chosen" in found:  # a text may be split in a word
        read |= words_in([found["prompt"] + found[name] for name in ("chosen", "rejected")])
    named = [each.field for each in report.not_read]
    for column, written in row.items():
        lost = words_in(written) - read
        assert not lost or any(name.startswith(column) for name in named), (column, lost)


@settings(max_examples=400, deadline=None)
@given(row=row_of_a_format(), stage=EVERY_STAGE)
def test_a_plain_row_is_sound_when_it_is_read_closely(row: dict[str, Any], stage: str) -> None:
    layout = find_row_layout(row, stage)
    plain = PlainRows.of(layout, stage) if layout and accepts(stage, layout.row_format) else None
    if layout is None or plain is None or not plain.is_sound(row):
        return
    reading = read_columns(row, layout, stage)
    assert not reading.faults
    assert not reading.unread
    assert text_format(reading.row, layout) == plain.text_format


tool_name = st.sampled_from(["look_up", "add"])
arguments = st.dictionaries(word, word | st.none() | st.lists(st.none(), max_size=1), max_size=2)
call = st.fixed_dictionaries(
    {"function": st.fixed_dictionaries({"name": tool_name, "arguments": arguments})},
    optional={"type": st.just("function"), "id": word},
)
turn_of_a_call = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool"]), "content": word | st.just("")},
    optional={"tool_calls": st.lists(call, min_size=1, max_size=2), "name": tool_name},
)
function = st.fixed_dictionaries({"name": tool_name}, optional={"parameters": arguments})
offered_tool = st.fixed_dictionaries(
    {"function": function}, optional={"type": st.just("function"), "note": word}
)
row_of_calls = st.fixed_dictionaries(
    {"messages": st.lists(turn_of_a_call, min_size=1, max_size=4)},
    optional={"tools": st.none() | st.lists(offered_tool, max_size=2)},
)


def plain_rows_of(row: Mapping[str, Any]) -> tuple[RowLayout, PlainRows]:
    layout = find_row_layout(row, "sft")
    assert layout is not None
    plain = PlainRows.of(layout, "sft")
    assert plain is not None
    return layout, plain


@settings(max_examples=400, deadline=None)
@given(row=row_of_calls)
def test_a_plain_row_of_calls_is_read_as_written(row: dict[str, Any]) -> None:
    layout, plain = plain_rows_of(row)
    if plain.is_sound(row):
        reading = read_columns(row, layout, "sft")
        assert not reading.faults
        assert not reading.unread
        assert reading.row == {"messages": row["messages"]}
        assert (reading.tools or []) == (row.get("tools") or [])


def test_a_call_of_an_offered_tool_is_plain() -> None:
    function = {"name": "add", "arguments": {"a": 1}}
    called = {"role": "assistant", "content": "", "tool_calls": [{"function": function}]}
    messages = [{"role": "user", "content": "Add."}, called, {"role": "tool", "content": "1"}]
    messages.append({"role": "assistant", "content": "It is 1."})
    row = {"messages": messages, "tools": [{"function": {"name": "add"}}]}
    assert plain_rows_of(row)[1].is_sound(row)
