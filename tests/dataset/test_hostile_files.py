"""Files made to harm get a clear answer in little time and memory, and never end the process."""

import gzip
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from core.dataset import DatasetReport, check_file, check_in_child
from tests.builders.paths import ROOT

ROW = b'{"text": "a"}\n'
MIB = 2**20
DEPTHS = (33, 1000, 10_000, 100_000)


def in_child(tmp_path: Path, content: bytes) -> DatasetReport:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content)
    return check_in_child(file, seconds=20)


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"a":'], ids=["arrays", "objects", "both"])
def test_deep_nesting_is_refused_by_line(tmp_path: Path, opening: bytes) -> None:
    deep = [b'{"text": "b", "deep": ' + opening * depth + b"\n" for depth in DEPTHS]
    report = in_child(tmp_path, ROW.join([b"", *deep, b""]))
    problems = [(problem.line, problem.code) for problem in report.problems]
    assert problems == [(line, "too_deep") for line in (2, 4, 6, 8)]
    assert report.valid_rows == 5


def test_a_line_of_64_megabytes_is_refused_and_the_next_one_read(tmp_path: Path) -> None:
    report = in_child(tmp_path, ROW + b'{"text": "' + b"a" * 64 * MIB + b'"}\n' + ROW)
    assert report.rows == 3
    assert (report.problems[0].line, report.problems[0].code) == (2, "line_too_long")


def test_an_element_of_64_megabytes_is_refused(tmp_path: Path) -> None:
    report = in_child(tmp_path, b'[{"text": "a"}, {"text": "' + b"a" * 64 * MIB + b'"}]')
    assert "line_too_long" in {problem.code for problem in report.problems}


def test_20000_columns_are_refused(tmp_path: Path) -> None:
    row = json.dumps({f"key {number}": 1 for number in range(20_000)}).encode()
    report = in_child(tmp_path, ROW + row)
    assert (report.problems[0].line, report.problems[0].code) == (2, "too_many_keys")


def test_the_largest_line_of_empty_lists_is_survived(tmp_path: Path) -> None:
    lists = b"[]," * 2_700_000
    report = in_child(tmp_path, b'{"text": "a", "lists": [' + lists + b"[]]}\n" + ROW)
    assert report.rows == 2 or report.problems[0].code == "check_died"


def test_4_megabytes_of_quotes_and_backslashes_take_no_time(tmp_path: Path) -> None:
    begun = time.monotonic()
    for piece in (b'"', b"\\", b'"\\', b'[{"', b","):
        assert not in_child(tmp_path, piece * (4_000_000 // len(piece))).is_usable
    assert time.monotonic() - begun < 15


def test_a_gzip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    begun = time.monotonic()
    report = in_child(tmp_path, gzip.compress(bytes(50_000_000)))
    assert report.problems[0].code == "not_text"
    assert time.monotonic() - begun < 5


def test_a_file_that_is_not_there_is_a_report() -> None:
    assert check_in_child(Path("/no/such/file.jsonl")).problems[0].code == "unreadable"


def test_a_child_without_enough_memory_is_a_report(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'{"text": "' + b"a" * 7 * MIB + b'"}')
    report = check_in_child(tmp_path / "rows.jsonl", memory_bytes=20 * MIB)
    assert not report.is_usable
    assert report.problems[0].code == "check_died"


def test_a_check_is_limited_in_time(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(ROW)
    report = check_in_child(tmp_path / "rows.jsonl", seconds=0.01)
    assert report.problems[0].code == "check_too_long"


def test_the_child_reports_as_the_check_itself_does(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(ROW * 3 + b'{"text": 7}\n')
    assert check_in_child(file) == check_file(file)


def test_remembered_columns_do_not_grow_with_the_file(tmp_path: Path) -> None:
    rows = b"".join(b'{"text": "a", "%d%s": 1}\n' % (number, b"k" * 2000) for number in range(3000))
    report = in_child(tmp_path, rows)
    assert report.is_usable
    assert report.rows == 3000


@pytest.mark.slow
def test_a_million_short_rows_take_seconds_and_little_memory(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = (b'{"question": "%d", "answer": "b"}\n' % number for number in range(1_000_000))
    file.write_bytes(b"".join(rows))
    script = (
        "import sys; from pathlib import Path; from core.dataset import check_file;"
        "report = check_file(Path(sys.argv[1]));"
        "peak = Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0];"
        "print(report.rows, report.duplicates, int(peak) // 1024)"
    )
    command = [sys.executable, "-c", script, file]
    begun = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    num_rows, duplicates, mebibytes = map(int, done.stdout.split())
    assert (num_rows, duplicates) == (1_000_000, 0)
    assert mebibytes < 400
    assert time.monotonic() - begun < 30
