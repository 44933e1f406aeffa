"""Imports: every source becomes JSONL with each value as it is, or one sentence says why not."""

import gzip
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.dataset import check_file
from core.dataset.intake import (
    ImportLimits,
    ImportProgress,
    csv_lines,
    import_dataset,
    is_hub_dataset,
)
from core.dataset.rewrite import repair
from core.job import DatasetError
from core.training.contract.files import sha256_of
from tests.builders.dataset_files import rows_in
from tests.builders.fake_hub import fake_hub
from tests.builders.paths import DATA, ROOT


def csv_rows(tmp_path: Path, content: str | bytes) -> list[Any]:
    file = tmp_path / "rows.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [json.loads(line) for _num_bytes, line in csv_lines(file)]


def test_cells_of_csv_stay_the_texts_that_they_are(tmp_path: Path) -> None:
    content = 'question,answer\n2026-11-22,9223372036854775808\n" a ""b"", \n1e5",null\n\n,NaN\n'
    assert csv_rows(tmp_path, content) == [
        {"question": "2026-11-22", "answer": "9223372036854775808"},
        {"question": ' a "b", \n1e5', "answer": "null"},
        {"question": "", "answer": "NaN"},
    ]


@pytest.mark.parametrize(
    "content",
    [
        "a;b\n1,5;2\n",
        "a\tb\n1,5\t2\n",
        "a|b\n1,5|2\n",
        '\ufeffa,b\n"1,5",2\n',
        'a,b\r\n"1,5",2\r\n',
        '"a", "b"\n"1,5", "2"\n',
        'a,b\n"1,5",  "2"\n',
        'a, b\n"1,5", 2\n',
        "sep=;\na;b\n1,5;2\n",
        "a;b\n1,5;2\n",
        "a\tb\r\n1,5\t2",
    ],
)
def test_the_dialect_is_guessed_from_the_first_rows(tmp_path: Path, content: str) -> None:
    assert csv_rows(tmp_path, content) == [{"a": "1,5", "b": "2"}]


def test_spaces_inside_of_cells_are_kept(tmp_path: Path) -> None:
    content = 'a,b\n one, two\n" three"," ""four"""\n'
    assert csv_rows(tmp_path, content) == [
        {"a": " one", "b": " two"},
        {"a": " three", "b": ' "four"'},
    ]


def test_a_column_without_a_name_gets_its_number(tmp_path: Path) -> None:
    assert csv_rows(tmp_path, ",a\n0,x\n") == [{"column 1": "0", "a": "x"}]


def test_a_tsv_file_may_hold_commas_instead(tmp_path: Path) -> None:
    (tmp_path / "rows.tsv").write_text("a,b\n1,2\n")
    imported = import_dataset(str(tmp_path / "rows.tsv"), tmp_path)
    assert rows_in(imported.path) == [{"a": "1", "b": "2"}]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_read_with_a_mark_and_without(tmp_path: Path, encoding: str) -> None:
    content = "question,b\né,2\n".encode(encoding)
    assert csv_rows(tmp_path, content) == [{"question": "é", "b": "2"}]


def test_blank_lines_before_the_names_are_skipped(tmp_path: Path) -> None:
    assert csv_rows(tmp_path, "\n\na,b\n1,2\n") == [{"a": "1", "b": "2"}]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("a,b\n1,2\n1,2,3\n", "line 3, row: .* 3 cells, the first row 2"),
        ('a,b\n1,"2\n3,4\n', "line 2, row: a cell .* is opened with a double quote, never closed"),
        ('a,b\n"1 \\"2\\"",3\n', "line 2, row: a double quote stands where .* twice"),
        ("", "file: the file is empty; give a row with the names"),
        ("\n\n", "file: the file holds blank lines only"),
        ("text\nOnce, upon\n", 'line 2, .* 1; .* holds "," must be in double quotes'),
        ("a,a\n1,2\n", "the name of two columns"),
        ("a,b\n1,2\n1\n1,2\n1,2,3\n1\n", "line 3, .* 1 cell, .* 2; others end in lines 5, 6"),
        ('"a", "b"\n"1", "2, 3"\n"1"\n', "line 3, row: .* 1 cell,"),
        (",\n1,2\n", "no column has a name"),
        (b"a,b\n\xe9,2\n", "not UTF-8"),
        (gzip.compress(b"a,b\n", mtime=0), "gzip data"),
    ],
)
def test_bad_csv_is_named(tmp_path: Path, content: str | bytes, says: str) -> None:
    with pytest.raises(DatasetError, match=says):
        csv_rows(tmp_path, content)


def test_a_parquet_file_is_imported(tmp_path: Path) -> None:
    columns = {"question": ["a"], "answer": ["b"], "image": [b"\xff"], "n": [float("nan")]}
    table = pa.table(columns)
    pq.write_table(table, tmp_path / "x.parquet")
    imported = import_dataset(str(tmp_path / "x.parquet"), tmp_path)
    row = {"question": "a", "answer": "b", "image": {"num_bytes": 1}, "n": None}
    assert rows_in(imported.path) == [row]
    assert [each.field for each in check_file(imported.path).needs_consent] == ["image"]
    assert imported.rows == 1
    assert imported.actions == (
        "1 Parquet table became JSON lines.",
        "NaN became null in 1 place.",
        "Bytes that are no text were left out: 1 value.",
    )
    assert imported.sha256 == sha256_of(imported.path)


def test_an_import_reports_its_progress(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text\na\n")
    reports: list[ImportProgress] = []
    import_dataset(str(tmp_path / "rows.csv"), tmp_path, on_progress=reports.append)
    assert reports[-1] == ImportProgress("converting", 1.0)


@pytest.mark.parametrize(
    ("name", "content", "target", "row"),
    [
        ("my rows.csv", "text\na\n", "my-rows.jsonl", b'{"text":"a"}\n'),
        ("array.json", '[{"text": 1e5}]', "array.jsonl", b'{"text": 1e5}\n'),
    ],
)
def test_an_import_leaves_its_file_and_nothing_else(
    tmp_path: Path, name: str, content: str, target: str, row: bytes
) -> None:
    (tmp_path / name).write_text(content)
    imported = import_dataset(str(tmp_path / name), tmp_path)
    assert imported.path == tmp_path / target
    assert imported.rows == 1
    assert imported.path.read_bytes() == row
    assert {path.name for path in tmp_path.iterdir()} == {name, target}


def test_one_of_a_thing_is_not_told_as_several(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text\na\n")
    imported = import_dataset(str(tmp_path / "rows.csv"), tmp_path)
    assert imported.actions == ("1 CSV file became JSON lines.",)
    (tmp_path / "line.jsonl").write_text('\n{"text": "a",}\r\n')
    report = check_file(tmp_path / "line.jsonl")
    assert report.summary() == "1 row · unknown columns · 1 problem"
    assert report.notes == (
        "CR LF, as on Windows, ends 1 line, which is harmless.",
        "1 blank line left out.",
    )
    assert repair(tmp_path / "line.jsonl", tmp_path / "new.jsonl").actions == (
        "Removed 1 carriage return from the ends of lines.",
        "Removed commas before closing brackets in 1 row.",
    )


def test_a_jsonl_file_stays_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n\n{"text": "b"}')
    imported = import_dataset(str(tmp_path / "rows.jsonl"), tmp_path)
    assert (imported.path, imported.rows) == (tmp_path / "rows.jsonl", 2)
    assert imported.actions == ()


@pytest.mark.parametrize(
    ("name", "limits", "says"),
    [
        ("none.csv", ImportLimits(), "there is no file"),
        ("packed.jsonl", ImportLimits(), "gunzip"),
        ("rows.csv", ImportLimits(max_bytes=10), "more than 0.0 GiB"),
        ("broken.parquet", ImportLimits(), "no readable Parquet"),
        ("rows.csv", ImportLimits(seconds=0.01), "took longer"),
    ],
)
def test_a_source_that_cannot_be_imported_is_a_sentence_and_no_file(
    tmp_path: Path, name: str, limits: ImportLimits, says: str
) -> None:
    (tmp_path / "packed.jsonl").write_bytes(gzip.compress(b"{}"))
    (tmp_path / "rows.csv").write_text("text\n" + "a\n" * 100)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1" + b"\0" * 100)
    with pytest.raises(DatasetError, match=says):
        import_dataset(str(tmp_path / name), tmp_path, limits=limits)
    assert len(list(tmp_path.iterdir())) == 3


def test_an_import_can_be_cancelled(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text\na\n")
    with pytest.raises(DatasetError, match="converting it: cancelled"):
        import_dataset(str(tmp_path / "rows.csv"), tmp_path, is_cancelled=lambda: True)


@pytest.mark.parametrize("source", ["owner/name", "owner/name:config/split", "owner/name-v1.5"])
def test_a_name_with_one_slash_is_a_dataset_on_the_hub(source: str) -> None:
    assert is_hub_dataset(source)


@pytest.mark.parametrize(
    "source",
    [
        "data/train.jsonl",
        "data/Rows.CSV",
        "data/rows.json",
        "data/rows.parquet",
        "name",
        "/owner/name",
        "../name",
        "a/b/c",
        "tests/data",
        "owner/na me",
    ],
)
def test_a_file_is_no_dataset_on_the_hub(source: str) -> None:
    assert not is_hub_dataset(source)


def packed(table: pa.Table) -> bytes:
    content = io.BytesIO()
    pq.write_table(table, content)
    return content.getvalue()


def with_configs(*configs: str) -> bytes:
    lines = "".join(f"- config_name: {each}\n" for each in configs)
    return f"---\nconfigs:\n{lines}---\n".encode()


EXACT = b'{"text": "2026-11-22"}\n{"text": "b", "n": 9223372036854775808}\n'
SECRET = DATA / "array.json"
ON_THE_HUB: Mapping[str, Mapping[str, bytes]] = {
    "owner/lines": {"train.jsonl.gz": gzip.compress(EXACT), "test.jsonl": b""},
    "owner/tables": {
        f"data/train-{part}.parquet": packed(pa.table({"text": [str(part)]})) for part in range(2)
    },
    "owner/configs": {
        "README.md": with_configs("en\n  data_files: en.csv", "de\n  data_files: de.csv"),
        "en.csv": b"text\nhello\n",
        "de.csv": b"text\nhallo\n",
    },
    "owner/texts": {"data/train.txt": b"Once upon\na time.\n\nThe end.\n"},
    "owner/program": {"program.py": b"raise SystemExit"},
    "owner/pictures": {"a.png": b""},
    "owner/thief": {"README.md": with_configs(f"x\n  data_files: {SECRET}"), "a.json": b"[]"},
}
REFUSED = (
    (("owner/configs", "", ""), "say which config: en, de"),
    (("owner/configs", "fr", ""), "no config 'fr', but en, de"),
    (("owner/lines", "", "dev"), "no split 'dev', but train, test"),
    (("owner/program", "", ""), "no files that can be read as rows"),
    (("owner/pictures", "", ""), "of the form imagefolder"),
    (("owner/thief", "", ""), "a file that is not its own"),
    (("owner/gated", "", ""), "accept its terms at"),
    (("owner/none", "", ""), "there is no dataset owner/none"),
)
REASONS = """
import json, sys
from core.workers.fetch.__main__ import explain, find_files
for id, config, split in json.load(sys.stdin):
    try:
        print(json.dumps(find_files(id, config, split).paths))
    except Exception as error:
        print(explain(error, {"id": id}))
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    """Return the environment in which a child takes this machine for the Hub."""
    with fake_hub(ON_THE_HUB, gated="owner/gated") as address:
        cache = str(tmp_path_factory.mktemp("cache"))
        yield {"HF_ENDPOINT": address, "HF_HOME": cache, "HF_HUB_OFFLINE": "0"}


@pytest.mark.parametrize(
    ("source", "content"),
    [
        ("owner/lines", EXACT),
        ("owner/tables", b'{"text": "0"}\n{"text": "1"}\n'),
        ("owner/configs:de", b'{"text":"hallo"}\n'),
        ("owner/texts", b'{"text":"Once upon\\na time."}\n{"text":"The end."}\n'),
    ],
)
def test_a_dataset_of_the_hub_is_imported_exactly(
    tmp_path: Path,
    hub: Mapping[str, str],
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    content: bytes,
) -> None:
    for name, value in hub.items():
        monkeypatch.setenv(name, value)
    imported = import_dataset(source, tmp_path)
    assert imported.path.read_bytes() == content
    assert "Hugging Face Hub" in imported.actions[0]
    assert list(tmp_path.iterdir()) == [imported.path]


@pytest.mark.parametrize(("asked", "says"), REFUSED)
def test_a_dataset_that_cannot_be_imported_is_a_sentence(
    reasons: Mapping[tuple[str, ...], str], asked: tuple[str, ...], says: str
) -> None:
    assert says in reasons[asked]
    assert "Error" not in reasons[asked]


@pytest.fixture(scope="module")
def reasons(hub: Mapping[str, str]) -> Mapping[tuple[str, ...], str]:
    """Return why datasets cannot be read; one process is asked for all of them."""
    asked = [asked for asked, _says in REFUSED]
    done = subprocess.run(
        [sys.executable, "-c", REASONS],
        input=json.dumps(asked),
        env=os.environ | hub,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(zip(asked, done.stdout.splitlines(), strict=True))


def test_without_a_network_the_hub_is_one_sentence(tmp_path: Path) -> None:
    says = "the Hugging Face Hub cannot be reached from here; fetch owner/name where"
    with pytest.raises(DatasetError, match=says):
        import_dataset("owner/name", tmp_path)
    assert list(tmp_path.iterdir()) == []
