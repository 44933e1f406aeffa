"""Test that large files are rewritten in a child process, with the same result as here."""

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.dataset.rewrite import Composed, Selection, in_child, mix
from core.job import DatasetError
from tests.builders.dataset_files import rows_in, write_json_rows

LONG_LINE_BYTES = 150 * 2**20


@pytest.fixture
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_child, "SMALL_BYTES", 0)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_json_rows(tmp_path / "rows.jsonl", ({"text": f"row {n}"} for n in range(40)))


@pytest.fixture
def long_line(tmp_path: Path) -> Iterator[Path]:
    """Return a file whose second line is longer than this process may take."""
    file = tmp_path / "long.jsonl"
    with file.open("wb") as out:
        out.write(b'{"text": "short"}\n{"text": "')
        for _chunk in range(LONG_LINE_BYTES // 2**20):
            out.write(b"x" * 2**20)
        out.write(b'"}\n')
    yield file
    file.unlink()


def test_the_same_rows_are_composed(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    selection, found = Selection(10, 0.2, stage="cpt"), []
    for name, small_bytes in (("here", 2**20), ("in_child", 0)):
        monkeypatch.setattr(in_child, "SMALL_BYTES", small_bytes)
        target, eval_target = tmp_path / f"{name}.jsonl", tmp_path / f"{name}-eval.jsonl"
        composed = in_child.compose([(rows, 1.0)], target, selection, eval_target)
        found.append((composed, rows_in(target), rows_in(eval_target)))
    assert found[0] == found[1]
    assert found[0][0] == Composed((10,), 2)


def test_a_file_is_rewritten(everything_is_large: None, tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text('{"text": "a"}\nbad\n')
    written = in_child.rewrite("drop_bad_rows", source, tmp_path / "new.jsonl", stage="cpt")
    assert written.actions == ("1 row left out: line 2.",)
    assert rows_in(tmp_path / "new.jsonl") == [{"text": "a"}]


def test_leaked_rows_are_counted(everything_is_large: None, rows: Path, tmp_path: Path) -> None:
    held_out = write_json_rows(tmp_path / "eval.jsonl", [{"text": "row 3"}, {"text": "new"}])
    assert in_child.count_leaked(rows, held_out, "cpt") == (1, 2)


def test_formats_are_compared_in_the_child(
    everything_is_large: None, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(mix, "require_one_format")  # the child has its own
    other = write_json_rows(tmp_path / "other.jsonl", [{"prompt": "a", "completion": "b"}])
    in_child.require_one_format([rows, rows], "sft")
    with pytest.raises(DatasetError, match=r"rows\.jsonl holds .* but other\.jsonl holds"):
        in_child.require_one_format([rows, other], "sft")


def test_what_cannot_be_rewritten_is_said(everything_is_large: None, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 100)
    with pytest.raises(DatasetError, match="not JSON lines"):
        in_child.rewrite("repair", tmp_path / "rows.jsonl", tmp_path / "new.jsonl")


def test_a_line_of_any_length_takes_no_memory_here(long_line: Path, tmp_path: Path) -> None:
    peak_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DatasetError, match="line 2, row: the line is longer than 8 MiB"):
        in_child.compose([(long_line, 1.0)], tmp_path / "new.jsonl", Selection(max_rows=1))
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak_before
    assert grown_kib < 50 * 2**10
