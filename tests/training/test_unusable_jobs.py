"""Jobs and data that the training program refuses, and the environment that it sets up."""

import json
import os
from pathlib import Path

import pytest

from core.training import __main__ as program
from tests.builders.training_runs import (
    FINISHED,
    STOPPED,
    UNUSABLE,
    change_job,
    error_of,
    make_run,
    status_of,
    train,
    write_rows,
)

CONVERSATION = {
    "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
}


def test_a_job_without_its_data_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run")
    job = json.loads((run / "job.json").read_text())
    del job["dataset"]
    (run / "job.json").write_text(json.dumps(job))
    assert train(run) == UNUSABLE
    assert "job.json: field dataset is missing" in capsys.readouterr().err
    assert status_of(run)["cause"] == "bad_job"


def test_a_job_file_that_is_not_json_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "job.json").write_text("{")
    assert train(tmp_path) == UNUSABLE
    assert capsys.readouterr().err.startswith("job.json: is not JSON")


@pytest.mark.training
def test_an_older_job_file_trains_and_notes_what_it_lacks(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", max_steps=1)
    job = json.loads((run / "job.json").read_text())
    del job["max_lost_answers"]
    (run / "job.json").write_text(json.dumps(job | {"from_the_future": 1}))
    assert train(run) == FINISHED
    assert status_of(run)["notes"] == [
        "Not in job.json, so the defaults are used: max_lost_answers.",
        "Unknown in job.json, so ignored: from_the_future.",
    ]


@pytest.mark.parametrize(
    ("chosen", "is_expandable"),
    [({}, True), ({"PYTORCH_ALLOC_CONF": "a:b"}, False), ({"PYTORCH_CUDA_ALLOC_CONF": ""}, False)],
)
def test_the_allocator_is_configured_unless_the_user_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: dict[str, str], is_expandable: bool
) -> None:
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(program, "train", lambda job, run_files: None)
    assert train(make_run(tmp_path / "run")) == FINISHED
    found = os.environ.get("PYTORCH_CUDA_ALLOC_CONF") == "expandable_segments:True"
    assert found == is_expandable


def test_a_stop_file_at_the_start_stops_the_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "stop").touch()
    assert train(run) == STOPPED
    assert status_of(run)["state"] == "stopped"


@pytest.mark.training
def test_a_bad_row_is_named_by_its_line(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    write_rows(run, CONVERSATION, "", CONVERSATION, '{"messages": [')
    assert error_of(run).startswith("dataset line 4: not JSON at column")
    assert status_of(run)["cause"] == "bad_row"


@pytest.mark.training
def test_rows_without_room_for_an_answer_are_refused(tmp_path: Path) -> None:
    assert "max_length 8" in error_of(make_run(tmp_path / "run", max_length=8))


@pytest.mark.training
def test_a_model_that_is_nowhere_is_named_with_a_cause(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", model="no/such-model")
    assert "no/such-model" in error_of(run)
    assert status_of(run)["cause"] in ("offline", "model_not_found")


@pytest.mark.training
def test_an_optimizer_without_its_package_says_what_to_install(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", method="full", optim="schedule_free_adamw")
    assert error_of(run).endswith("pip install schedulefree")


@pytest.mark.training
def test_a_value_of_a_wrong_type_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    change_job(run, lora_r="many")
    assert train(run) == UNUSABLE
    assert "field lora_r is 'many'" in status_of(run)["error"]
