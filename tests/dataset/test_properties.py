"""Properties: accepted rows reach the training unchanged, and no bytes break the check."""

import csv
import io
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from core.dataset import check_file
from core.dataset.intake import Sources, write_json_lines
from core.dataset.reading.lines import ByteSource, blocks_of_lines, parse_block, parse_line
from core.dataset.rewrite import map_columns, repair
from core.dataset.rewrite.repair import write_lines
from core.training.contract.stages import STAGES
from core.workers.fetch.json_values import JsonValues
from core.workers.fetch.parquet import write_rows
from tests.builders.dataset_files import rows_in, trained_rows, write_json_rows

text = st.text(max_size=30) | st.sampled_from(
    [
        "2026-11-22",
        "1e5",
        "\u2028",
        "\x85",
        "\0",
        '"a": ":',
        "\\",
        "é" * 9,
        "😀",
        "\ufeff",
        "NaN",
        "<|im_end|>",
        "\x7f",
    ]
)
key = st.sampled_from(["id", "date", "meta", "a\\", ":", "é"])
number = (
    st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | st.just(2**63)
)
scalar = st.none() | st.booleans() | number | text
value = st.recursive(
    scalar,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(key, inner, max_size=3),
    max_leaves=6,
)
more = st.dictionaries(key, value, max_size=3)
call = st.fixed_dictionaries(
    {
        "type": st.just("function"),
        "function": st.fixed_dictionaries(
            {"name": st.just("f"), "arguments": st.dictionaries(key, value, max_size=3)}
        ),
    }
)
turn = st.tuples(
    st.fixed_dictionaries({"role": st.just("user"), "content": text}),
    st.fixed_dictionaries(
        {"role": st.just("assistant"), "content": text},
        optional={"tool_calls": st.lists(call, min_size=1, max_size=2)},
    ),
)
conversation = st.lists(turn, min_size=1, max_size=3).map(
    lambda turns: [message for pair in turns for message in pair]
)
row = st.one_of(
    st.fixed_dictionaries({"text": text}),
    st.fixed_dictionaries({"prompt": text, "completion": text}),
    st.fixed_dictionaries({"question": text, "answer": text}),
    st.fixed_dictionaries({"messages": conversation}),
)
rows_of_one_format = st.lists(st.tuples(row, more), min_size=1, max_size=6).map(
    lambda pairs: [
        extra | columns for columns, extra in pairs if columns.keys() == pairs[0][0].keys()
    ]
)


some_text = st.sampled_from(["a", "", " "])
role = st.sampled_from(["user", "assistant", "system", "tool", "wizard", "", 7, None, ["user"]])
some_message = (
    st.fixed_dictionaries(
        {}, optional={"role": role, "content": some_text | st.none() | st.just(["a"])}
    )
    | some_text
)
some_turns = st.lists(some_message, max_size=3) | st.just(
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
)
anything = some_text | st.sampled_from([None, True, 7, {}, [], {"a": 1}]) | some_turns
COLUMNS = [
    "messages",
    "prompt",
    "completion",
    "instruction",
    "output",
    "input",
    "system",
    "question",
    "answer",
    "text",
]
any_row = st.dictionaries(
    st.sampled_from([*COLUMNS, "tools", "label", "chosen", "id"]), anything, max_size=4
)
an_answer = (
    st.sampled_from(["a", "a b", "a ", "a\n", " "])
    | conversation
    | conversation.map(lambda turns: turns[1:])
)
a_tool = st.none() | st.just([{"type": "function", "function": {"name": "f"}}])
any_pair = st.fixed_dictionaries(
    {"chosen": an_answer, "rejected": an_answer}, optional={"tools": a_tool}
)
some_rows = st.lists(any_row, min_size=1, max_size=2) | any_pair.map(lambda row: [row])


@contextmanager
def new_folder() -> Iterator[Path]:
    """Give a folder for one example; fixtures are shared by all of them."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def without_nulls(value: Any) -> Any:
    """Return a value whose objects have no key with null."""
    if isinstance(value, list):
        return [without_nulls(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {key: without_nulls(each) for key, each in value.items() if each is not None}


def in_trl_columns(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row in TRL's columns, written independently of the training program.

    Tables put nulls into the arguments of calls, so those are left out.
    """
    for message in row.get("messages", ()):
        for each in message.get("tool_calls", ()):
            each["function"]["arguments"] = without_nulls(each["function"]["arguments"])
    if "question" in row:
        return {
            "prompt": [{"role": "user", "content": row["question"]}],
            "completion": [{"role": "assistant", "content": row["answer"]}],
        }
    return {name: row[name] for name in ("text", "prompt", "completion", "messages") if name in row}


@settings(max_examples=150, deadline=None)
@given(
    rows=rows_of_one_format,
    ascii=st.booleans(),
    end=st.sampled_from(["\n", "\r\n", "\n\n"]),
    has_spaces=st.booleans(),
)
def test_accepted_rows_reach_the_trainer_unchanged(
    rows: list[dict[str, Any]], ascii: bool, end: str, has_spaces: bool
) -> None:
    separators = (" , ", " : ") if has_spaces else (",", ":")
    lines = [json.dumps(row, ensure_ascii=ascii, separators=separators) + end for row in rows]
    with new_folder() as folder:
        file = folder / "rows.jsonl"
        file.write_bytes("".join(lines).encode())
        report = check_file(file)
        assert report.rows == len(rows)
        if report.is_usable:
            found = trained_rows(file)
            for row in found:
                row.pop("tools", None)
            assert found == [in_trl_columns(row) for row in rows]


some_pieces = st.sampled_from(
    [
        b'{"text"',
        b":",
        b'"a"',
        b"}",
        b"{",
        b"[",
        b"]",
        b",",
        b"\n",
        b" ",
        b'"',
        b"\\",
        b"\xff",
        b"NaN",
        b"1e999",
        b"\r",
        b'{"text": "x"}',
        b"\xef\xbb\xbf",
    ]
)


@settings(max_examples=300, deadline=None)
@given(content=st.binary(max_size=80) | st.lists(some_pieces, max_size=14).map(b"".join))
def test_any_bytes_get_a_report_and_usable_ones_are_read(content: bytes) -> None:
    with new_folder() as folder:
        file = folder / "rows.jsonl"
        file.write_bytes(content)
        report = check_file(file)
        assert report.is_usable or report.problems
        if report.is_usable:
            done = write_lines(file, folder / "lines.jsonl")
            assert len(trained_rows(done.path)) == report.rows


TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@settings(max_examples=400, deadline=None)
@example(rows=[{"instruction": TURNS}, {"question": TURNS}], stage="cpo")
@given(rows=some_rows, stage=st.sampled_from(sorted(STAGES)))
def test_no_row_passes_that_the_trainer_refuses(rows: list[dict[str, Any]], stage: str) -> None:
    with new_folder() as folder:
        file = write_json_rows(folder / "rows.jsonl", rows)
        report = check_file(file, stage)
        if report.is_usable:
            is_split = stage == "kto" and report.dataset_type == "preference"
            # One object of lists is a table of columns, so a run copies what the check has read.
            done = write_lines(file, folder / "lines.jsonl")
            assert len(trained_rows(done.path, stage)) == report.rows * (2 if is_split else 1)


line = st.lists(
    st.sampled_from(
        [
            *(
                b'{"a":1}',
                b'{"a":1,"a":2}',
                b'{"a" :1,"b":2}',
                b'{"a\\u0022:":1}',
                b'{"a":"\\":","b":"\\u003a"}',
                b'{"a":[{}',
            ),
            *(
                b"{}]}",
                b"{},{}",
                b",",
                b"",
                b" ",
                b"{",
                b"}",
                b'"":',
                b'{"a":{"b":{"a":1}}}',
                b'{"":1,"":2}',
                b"[1]",
                b"1",
            ),
            *(
                b'{"a\\\\":1,"a\\\\":2}',
                b'{"a":"\\u0022:","a":1}',
                b"\xef\xbb\xbf{}",
                b'{"a":' + b"[" * 31 + b"]" * 31 + b"}",
            ),
            *(
                b'{"a":' + b"[" * 32 + b"]" * 32 + b"}",
                b'{"a":NaN}',
                b"\xff",
                b"\r",
                b'{"a":"' + b"[" * 40 + b'"}',
            ),
        ]
    ),
    max_size=2,
).map(b"".join)


@settings(max_examples=400, deadline=None)
@given(lines=st.lists(line, min_size=1, max_size=4))
def test_the_fast_parser_agrees_with_the_exact_one(lines: list[bytes]) -> None:
    source = ByteSource(io.BytesIO(b"\n".join(lines)))
    found = [entry for block in blocks_of_lines(source) for entry in parse_block(block)]
    exact = []
    for number, line in enumerate(lines, start=1):
        exact.append((number, line, *parse_line(line, is_exact=True)))
    assert found == (exact if lines[-1] else exact[:-1])


cell = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
name = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=6).filter(
    str.strip
)


@settings(max_examples=100, deadline=None)
@given(
    cells=st.lists(st.tuples(cell, cell), max_size=5),
    names=st.lists(name, min_size=2, max_size=2, unique=True),
)
def test_cells_of_csv_become_the_texts_that_they_are(
    cells: list[tuple[str, str]], names: list[str]
) -> None:
    with new_folder() as folder:
        source, target = folder / "rows.csv", folder / "rows.jsonl"
        with source.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, quoting=csv.QUOTE_ALL).writerows([names, *cells])
        write_json_lines(Sources([source], "csv", delimiter=","), target)
        names[0] = names[0].removeprefix("\ufeff")
        assert rows_in(target) == [dict(zip(names, row, strict=True)) for row in cells]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.tuples(cell, st.none() | st.integers(-(2**63), 2**63 - 1)), min_size=1, max_size=5
    )
)
def test_values_of_parquet_reach_the_trainer_unchanged(rows: list[tuple[str, int | None]]) -> None:
    texts, numbers = (list(column) for column in zip(*rows, strict=True))
    table = pyarrow.table({"theirs": texts, "n": pyarrow.array(numbers, "int64")})
    with new_folder() as folder:
        source, whole, target = (folder / name for name in ("a.parquet", "all.jsonl", "b.jsonl"))
        pyarrow.parquet.write_table(table, source)
        with whole.open("wb") as out:
            write_rows([source], JsonValues(), out, lambda _num_bytes: None)
        assert [row["n"] for row in rows_in(whole)] == numbers
        map_columns(whole, target, {"text": "theirs"}, "text")
        if check_file(target).is_usable:
            assert [row["text"] for row in trained_rows(target)] == texts


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.dictionaries(key, value, max_size=4), max_size=6),
    indent=st.sampled_from([None, 0, 2]),
)
def test_an_array_becomes_lines_with_the_same_rows(
    rows: list[dict[str, Any]], indent: int | None
) -> None:
    with new_folder() as folder:
        source = folder / "rows.json"
        source.write_text(json.dumps(rows, ensure_ascii=False, indent=indent), encoding="utf-8")
        done = write_lines(source, folder / "rows.jsonl")
        assert rows_in(done.path) == rows


@pytest.mark.parametrize("number", [2 / 3, 3.141592653589793, -0.0, 5e-324, 2**64, -(2**63) - 1])
def test_numbers_in_tool_calls_reach_the_trainer_unchanged(number: float, tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"n": number}}}
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    file = write_json_rows(tmp_path / "rows.jsonl", [{"messages": messages}])
    assert check_file(file).is_usable
    assert repr(trained_rows(file)[0]["messages"]) == repr(messages)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.fixed_dictionaries({"text": text, "more": value}), min_size=1, max_size=5),
    indent=st.sampled_from([None, 0, 2]),
    between=st.sampled_from(["", " ", ", ", "\n", ",\n", "\r\n\n"]),
)
def test_objects_in_any_layout_become_one_a_line(
    rows: list[dict[str, Any]], indent: int | None, between: str
) -> None:
    content = between.join(json.dumps(row, indent=indent) for row in rows)
    with new_folder() as folder:
        source = folder / "rows.jsonl"
        source.write_text(content, encoding="utf-8", newline="")
        done = repair(source, folder / "repaired.jsonl")
        assert rows_in(done.path) == rows
        assert done.rows == len(rows)
