"""Files made to harm: a clear answer in little time and memory, and never the end of the process."""

import gzip
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from core import dataset
from core.dataset import DatasetReport, check_in_child
from tests.builders.paths import ROOT

ROW = b'{"text": "a"}\n'


def in_child(tmp_path: Path, content: bytes) -> DatasetReport:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content)
    return check_in_child(file, seconds=20)


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"a":'], ids=["arrays", "objects", "both"])
@pytest.mark.parametrize("depth", [33, 1000, 10_000, 100_000])
def test_deep_nesting_is_refused_by_line(tmp_path: Path, opening: bytes, depth: int) -> None:
    report = in_child(tmp_path, ROW + b'{"text": "b", "deep": ' + opening * depth + b"\n" + ROW)
    assert (report.rows, report.valid_rows) == (3, 2)
    assert (report.problems[0].line, report.problems[0].code) == (2, "too_deep")


def test_a_line_of_64_megabytes_is_refused_and_the_next_one_read(tmp_path: Path) -> None:
    report = in_child(tmp_path, ROW + b'{"text": "' + b"a" * 64 * 2**20 + b'"}\n' + ROW)
    assert (report.rows, report.problems[0].line, report.problems[0].code) == (
        3,
        2,
        "line_too_long",
    )


def test_an_element_of_64_megabytes_is_refused(tmp_path: Path) -> None:
    report = in_child(tmp_path, b'[{"text": "a"}, {"text": "' + b"a" * 64 * 2**20 + b'"}]')
    assert {problem.code for problem in report.problems} >= {"line_too_long"}


def test_20000_keys_are_refused(tmp_path: Path) -> None:
    report = in_child(
        tmp_path, ROW + json.dumps({f"key {number}": 1 for number in range(20_000)}).encode()
    )
    assert (report.problems[0].line, report.problems[0].code) == (2, "too_many_keys")


def test_the_largest_line_of_empty_lists_is_survived(tmp_path: Path) -> None:
    report = in_child(
        tmp_path, b'{"text": "a", "lists": [' + b"[]," * (2_700_000) + b"[]]}\n" + ROW
    )
    assert report.rows == 2 or report.problems[0].code == "check_died"


def test_4_megabytes_of_quotes_and_backslashes_take_no_time(tmp_path: Path) -> None:
    begun = time.monotonic()
    for content in (
        b'"' * 4_000_000,
        b"\\" * 4_000_000,
        b'"\\' * 2_000_000,
        b'[{"' * 1_000_000,
        b"," * 4_000_000,
    ):
        assert not in_child(tmp_path, content).is_usable
    assert time.monotonic() - begun < 15


def test_a_gzip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    begun = time.monotonic()
    report = in_child(tmp_path, gzip.compress(bytes(50_000_000)))
    assert report.problems[0].code == "not_text" and time.monotonic() - begun < 5


def test_a_file_that_is_not_there_is_a_report() -> None:
    assert check_in_child(Path("/no/such/file.jsonl")).problems[0].code == "unreadable"


def test_a_child_without_enough_memory_is_a_report(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'{"text": "' + b"a" * 7 * 2**20 + b'"}')
    report = check_in_child(tmp_path / "rows.jsonl", memory_bytes=20 * 2**20)
    assert not report.is_usable and report.problems[0].code == "check_died"


def test_a_check_is_limited_in_time(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(ROW)
    report = check_in_child(tmp_path / "rows.jsonl", seconds=0.01)
    assert report.problems[0].code == "check_too_long"


def test_the_child_reports_as_the_check_itself_does(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(ROW * 3 + b'{"text": 7}\n')
    assert check_in_child(file) == dataset.check_file(file)


def test_leakage_between_two_files_is_counted_by_line(tmp_path: Path) -> None:
    train, held_out = tmp_path / "train.jsonl", tmp_path / "eval.jsonl"
    train.write_text('{"text": "a"}\n{"text": "b"}\n')
    held_out.write_text('{"text": "c"}\n\n{"text": "b"}\n')
    report = check_in_child(train, eval_path=held_out)
    assert report.leaked == 1 and [(each.line, each.code) for each in report.warnings] == [
        (3, "leaked")
    ]
    assert report.is_usable


def test_remembered_shapes_do_not_grow_with_the_file(tmp_path: Path) -> None:
    rows = b"".join(b'{"text": "a", "%d%s": 1}\n' % (number, b"k" * 2000) for number in range(3000))
    report = in_child(tmp_path, rows)
    assert report.is_usable and report.rows == 3000


@pytest.mark.slow
def test_a_million_short_rows_take_seconds_and_little_memory(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(
        b"".join(b'{"question": "%d", "answer": "b"}\n' % number for number in range(1_000_000))
    )
    script = (
        "import sys; from pathlib import Path; from core.dataset import check_file;"
        "report = check_file(Path(sys.argv[1]));"
        "peak = Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0];"
        "print(report.rows, report.duplicates, int(peak) // 1024)"
    )
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script, file], cwd=ROOT, capture_output=True, text=True, check=True
    )
    rows, duplicates, megabytes = map(int, done.stdout.split())
    assert (
        (rows, duplicates) == (1_000_000, 0) and megabytes < 400 and time.monotonic() - begun < 30
    )
