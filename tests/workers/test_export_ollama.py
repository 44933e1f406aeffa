"""Test what a Modelfile takes from the rows, the tokenizer and the folder of a model."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from core.after_training.export.ollama.template import GoTemplate
from core.after_training.export.records import ExportRequest
from core.training.contract.files import write_json
from core.training.contract.row_columns import Row
from core.workers.export.ollama import common_system, write_ollama_files
from core.workers.export.task import ExportTask
from tests.builders.exports import job_over
from tests.builders.modelfiles import values_of
from tests.builders.paths import DEMO

BRIEF = {"role": "system", "content": "Be brief."}
ASKED = {"role": "user", "content": "Hi!"}
ANSWERED = {"role": "assistant", "content": "Hello."}
TEMPLATE = GoTemplate(("<u>", "</u>"), ("<a>", "</a>"), "<a>", ("<s>", "</s>"))
WITHOUT_SYSTEM = GoTemplate(("<u>", "</u>"), ("<a>", "</a>"), "<a>")


def write_data(folder: Path, *rows: Row) -> None:
    (folder / "data").mkdir(parents=True)
    lines = [json.dumps(row) for row in rows]
    (folder / "data" / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")


@pytest.fixture
def task(tmp_path: Path) -> ExportTask:
    """Return the export of a run whose rows all begin with the same system text."""
    run = tmp_path / "run"
    write_data(run, *({"messages": [BRIEF, ASKED, ANSWERED]} for _number in range(3)))
    write_json(run / "job.json", asdict(job_over(DEMO / "model")))
    model = tmp_path / "model"
    AutoTokenizer.from_pretrained(DEMO / "model").save_pretrained(model)
    for name in ("config.json", "generation_config.json"):
        (model / name).write_bytes((DEMO / "model" / name).read_bytes())
    (tmp_path / "export" / "files").mkdir(parents=True)
    (tmp_path / "export" / "files" / "m.gguf").write_bytes(b"GGUF")
    return ExportTask(tmp_path / "export", ExportRequest("o", "ollama", "trained", str(run), ""))


def written(task: ExportTask, template: GoTemplate = TEMPLATE) -> str:
    """Return the Modelfile of an export."""
    model = task.folder.parent / "model"
    write_ollama_files(task, model, task.files / "m.gguf", template, None)
    return (task.files / "Modelfile").read_text(encoding="utf-8")


def test_the_system_text_of_all_rows_becomes_system(task: ExportTask) -> None:
    assert values_of(written(task), "SYSTEM") == ["Be brief."]
    assert "SYSTEM is the system text with which every row begins." in task.notes


def test_rows_that_are_gone_are_named(task: ExportTask) -> None:
    (Path(task.request.run_folder) / "data" / "train.jsonl").unlink()
    assert values_of(written(task), "SYSTEM") == []
    assert "No SYSTEM: the rows of the run are not there any more." in task.notes


def test_a_template_without_system_takes_none(task: ExportTask) -> None:
    assert values_of(written(task, WITHOUT_SYSTEM), "SYSTEM") == []


def test_the_demo_stops_at_the_end_of_a_turn(task: ExportTask) -> None:
    assert "<|im_end|>" in values_of(written(task), "PARAMETER stop")


def test_a_licence_is_written_without_what_ollama_drops(task: ExportTask) -> None:
    (task.folder.parent / "model" / "LICENSE").write_text('Free.\r\n\f"As is"\n', newline="")
    assert values_of(written(task), "LICENSE") == ['Free.\n"As is"\n']


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"messages": [ASKED, ANSWERED]}],
        [{"messages": [BRIEF, ASKED]}, {"messages": [ASKED]}],
        [{"messages": [BRIEF, ASKED]}, {"messages": [BRIEF | {"content": "Be long."}, ASKED]}],
        [{"messages": [BRIEF | {"content": [{"type": "text", "text": "Be brief."}]}, ASKED]}],
        [{"text": "Be brief."}],
    ],
    ids=["no rows", "none", "some", "two", "parts", "plain text"],
)
def test_rows_that_differ_have_no_system_text(rows: list[Row]) -> None:
    assert common_system(rows) == ""


def test_preferences_have_a_system_text_too() -> None:
    row = {"prompt": [BRIEF, ASKED], "chosen": [ANSWERED], "rejected": [ANSWERED]}
    assert common_system([row, row]) == "Be brief."
