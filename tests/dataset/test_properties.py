"""Whatever the check accepts, the trainer reads as it was written: same rows, same text, byte for byte."""

import csv
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core import dataset
from core.dataset.check.lines import Source, blocks_of_lines, parse, parse_block
from core.dataset.intake.convert import Sources, write_json_lines
from core.training.contract.stages import STAGES
from core.training.data.rows import read_rows
from core.workers.fetch.parquet import readable_columns, write_rows

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
rows_of_one_kind = st.lists(st.tuples(row, more), min_size=1, max_size=6).map(
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


def as_trainer_has_it(row: dict[str, Any]) -> dict[str, Any]:
    """A row in TRL's columns, written out independently of the trainer."""
    if "question" in row:
        question, answer = (
            {"role": role, "content": row[name]}
            for role, name in (("user", "question"), ("assistant", "answer"))
        )
        return {"prompt": [question], "completion": [answer]}
    return {name: row[name] for name in ("text", "prompt", "completion", "messages") if name in row}


@settings(max_examples=150, deadline=None)
@given(
    rows=rows_of_one_kind,
    ascii=st.booleans(),
    end=st.sampled_from(["\n", "\r\n", "\n\n"]),
    indent=st.booleans(),
)
def test_accepted_rows_reach_the_trainer_unchanged(
    rows: list[dict[str, Any]], ascii: bool, end: str, indent: bool
) -> None:
    separators = (" , ", " : ") if indent else (",", ":")
    content = "".join(
        json.dumps(row, ensure_ascii=ascii, separators=separators) + end for row in rows
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        file.write_bytes(content.encode())
        report = dataset.check_file(file)
        assert report.rows == len(rows)
        if report.is_usable:
            found = read_rows(Path(folder), "rows.jsonl", "", 0.0, 0).train
            kept = [{name: each for name, each in row.items() if name != "tools"} for row in found]
            assert kept == [as_trainer_has_it(row) for row in rows]


@settings(max_examples=300, deadline=None)
@given(
    content=st.binary(max_size=80)
    | st.lists(
        st.sampled_from(
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
        ),
        max_size=14,
    ).map(b"".join)
)
def test_any_bytes_get_a_report_and_what_is_usable_is_read(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        file.write_bytes(content)
        report = dataset.check_file(file)
        assert report.is_usable or report.problems
        if report.is_usable:
            dataset.write_lines(file, Path(folder) / "lines.jsonl")
            assert len(read_rows(Path(folder), "lines.jsonl", "", 0.0, 0).train) == report.rows


@settings(max_examples=400, deadline=None)
@given(
    rows=st.lists(any_row, min_size=1, max_size=2) | any_pair.map(lambda row: [row]),
    stage=st.sampled_from(sorted(STAGES)),
)
def test_no_row_passes_that_the_trainer_refuses(rows: list[dict[str, Any]], stage: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        if dataset.check_file(file, stage).is_usable:
            num_read = len(read_rows(Path(folder), "rows.jsonl", "", 0.0, 0, stage=stage).train)
            assert num_read in (len(rows), 2 * len(rows) if stage == "kto" else 0)


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
def test_lines_parsed_together_are_what_each_is_by_itself(lines: list[bytes]) -> None:
    file = io.BytesIO(b"\n".join(lines))
    together = [entry for block in blocks_of_lines(Source(file)) for entry in parse_block(block)]
    alone = [
        (number, line, *parse(line, is_suspect=True)) for number, line in enumerate(lines, start=1)
    ]
    assert together == (alone if lines[-1] else alone[:-1])


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
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "rows.csv"
        with source.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, quoting=csv.QUOTE_ALL).writerows([names, *cells])
        target = Path(folder) / "rows.jsonl"
        write_json_lines(Sources([source], "csv", delimiter=","), target)
        found = [json.loads(line) for line in target.read_bytes().split(b"\n") if line]
        names[0] = names[0].removeprefix("\ufeff") if not names[0].isascii() else names[0]
        assert found == [dict(zip(names, row, strict=True)) for row in cells]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.tuples(cell, st.none() | st.integers(-(2**63), 2**63 - 1)), min_size=1, max_size=5
    )
)
def test_values_of_parquet_reach_the_trainer_unchanged(rows: list[tuple[str, int | None]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        table = pyarrow.table(
            {
                "theirs": [text for text, _n in rows],
                "n": pyarrow.array([n for _text, n in rows], "int64"),
            }
        )
        source, whole, target = (
            Path(folder) / name for name in ("rows.parquet", "whole.jsonl", "rows.jsonl")
        )
        pyarrow.parquet.write_table(table, source)
        with whole.open("wb") as out:
            write_rows([source], readable_columns([source]), out, lambda _num_bytes: None)
        assert [json.loads(line)["n"] for line in whole.read_bytes().split(b"\n") if line] == [
            n for _text, n in rows
        ]
        dataset.map_columns(whole, target, {"text": "theirs"}, "text")
        if dataset.check_file(target).is_usable:
            found = read_rows(Path(folder), "rows.jsonl", "", 0.0, 0).train
            assert [row["text"] for row in found] == [text for text, _n in rows]


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.dictionaries(key, value, max_size=4), max_size=6),
    indent=st.sampled_from([None, 0, 2]),
)
def test_an_array_becomes_lines_with_the_same_rows(
    rows: list[dict[str, Any]], indent: int | None
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "rows.json"
        source.write_text(json.dumps(rows, ensure_ascii=False, indent=indent), encoding="utf-8")
        done = dataset.write_lines(source, Path(folder) / "rows.jsonl")
        lines = done.path.read_bytes().split(b"\n")
        assert [json.loads(line) for line in lines if line.strip()] == rows


@pytest.mark.parametrize("number", [2 / 3, 3.141592653589793, -0.0, 5e-324, 2**64, -(2**63) - 1])
def test_numbers_in_tool_calls_reach_the_trainer_unchanged(number: float, tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"n": number}}}
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": messages}))
    assert dataset.check_file(tmp_path / "rows.jsonl").is_usable
    assert repr(read_rows(tmp_path, "rows.jsonl", "", 0.0, 0).train[0]["messages"]) == repr(
        messages
    )


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.fixed_dictionaries({"text": text, "more": value}), min_size=1, max_size=5),
    indent=st.sampled_from([None, 0, 2]),
    between=st.sampled_from(["", " ", ", ", "\n", ",\n", "\r\n\n"]),
)
def test_objects_that_stand_anyhow_become_one_a_line(
    rows: list[dict[str, Any]], indent: int | None, between: str
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "rows.jsonl"
        source.write_text(
            between.join(json.dumps(row, indent=indent) for row in rows),
            encoding="utf-8",
            newline="",
        )
        done = dataset.repair(source, Path(folder) / "repaired.jsonl")
        found = [json.loads(line) for line in done.path.read_bytes().split(b"\n") if line.strip()]
        assert found == rows and done.rows == len(rows)
