"""Test exports from start to end: launched, verified, stopped, refused. One run serves all."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.after_training.export import launch, list_exports
from core.after_training.export.plan import plan_export
from core.after_training.export.records import ExportedFile, Manifest, unfinished_folder
from core.job import SpecError
from core.runs import Home, Run, read
from core.runs.checks import SuiteResult
from core.training.contract.checks.suite_files import parse_suite
from core.training.contract.files import write_json
from core.workers.export.__main__ import DROPPED, keep_checks
from tests.builders.fake_runs import bare_run
from tests.builders.training_runs import FINISHED, change_job, make_run, train
from ui.terminal import commands

pytestmark = [
    pytest.mark.training,
    pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU:UserWarning"),
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning"),
]
ID = "short-qlora"
SUITE = parse_suite(b'{"prompt": "say", "exact": "yes"}', "mine")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a short finished run of qlora."""
    folder = make_run(tmp_path_factory.mktemp("runs") / ID, method="qlora", max_steps=4)
    assert train(folder) == FINISHED
    return folder


@pytest.fixture
def run(trained: Path, home: Home) -> Iterator[Run]:
    """Return a copy of the run in a home of the test."""
    shutil.copytree(trained, home.runs / ID)
    yield read(home, ID)
    for name, _status in launch.unfinished(read(home, ID)):
        launch.request_stop(read(home, ID), name)


def exported(home: Home, *flags: str) -> int:
    """Export by the command line; return the exit code."""
    return commands.run("export", home=str(home.path), run=ID, to="merged", json=True)


def test_a_merged_folder_answers_as_trained(
    run: Run, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exported(home) == 0
    printed = json.loads(capsys.readouterr().out)
    verified = printed["verified"]
    assert verified["trusted"]
    assert verified["questions"] == 16
    assert verified["prompt_tokens_equal"] == 16
    assert verified["same_answers"] == 16
    assert verified["worst_logprob_difference"] < 0.05
    files = {each["name"]: each for each in printed["files"]}
    weights = Path(printed["path"]) / "model.safetensors"
    assert files["model.safetensors"]["bytes"] == weights.stat().st_size
    (export,) = list_exports(run)
    assert export.name == "merged"
    assert export.manifest.sources == {"training rows": 12, "suite capabilities": 4}
    assert launch.unfinished(run) == ()


def test_checks_of_an_export_stay_when_it_is_made_again(run: Run, home: Home, capsys) -> None:
    assert exported(home) == 0
    (export,) = list_exports(run)
    (export.folder / "checks").mkdir()
    result = SuiteResult.of_answers(SUITE, 4, ["yes"], ["no"])
    write_json(export.folder / "checks" / "mine.json", result.to_file())
    (unfinished_folder(run, "merged") / "files" / "checks").mkdir(parents=True)
    assert exported(home) == 0
    (again,) = list_exports(run)
    assert again.checks == (result,)
    assert again.manifest.notes == ()
    assert [each.name for each in again.manifest.files] == [
        each.name for each in export.manifest.files
    ]


@pytest.mark.parametrize(
    ("name", "sha256", "is_kept"),
    [("m.gguf", "1", True), ("m.gguf", "2", False), ("more.json", "1", False)],
)
def test_checks_of_other_files_are_dropped_and_that_is_said(
    tmp_path: Path, name: str, sha256: str, is_kept: bool
) -> None:
    earlier, files = tmp_path / "earlier", tmp_path / "files"
    (earlier / "checks").mkdir(parents=True)
    (earlier / "checks" / "mine.json").write_text("{}")
    gguf, readme = ExportedFile("m.gguf", 1, "1"), ExportedFile("README.md", 1, "old")
    Manifest("gguf", "trained", "Q8_0", (gguf, readme), None).write(earlier)
    files.mkdir()
    found = {gguf.name: gguf, name: ExportedFile(name, 1, sha256)}
    made = (*found.values(), ExportedFile("README.md", 1, "new"))
    manifest = keep_checks(earlier, files, Manifest("gguf", "trained", "Q8_0", made, None))
    assert (files / "checks" / "mine.json").is_file() == is_kept
    assert manifest.notes == (() if is_kept else (DROPPED,))


def test_a_base_that_is_gone_is_named(run: Run, home: Home, capsys) -> None:
    change_job(run.folder, model="/gone/model")
    assert exported(home) == 2
    assert "the base /gone/model is not there any more" in capsys.readouterr().err


def test_a_changed_base_is_refused(run: Run, home: Home, tmp_path: Path, capsys) -> None:
    other = shutil.copytree(run.job.model, tmp_path / "other")
    weights = (other / "model.safetensors").read_bytes()
    (other / "model.safetensors").write_bytes(weights[:-4096] + bytes(4096))
    change_job(run.folder, model=str(other))
    assert exported(home) == 2
    assert "has changed since" in capsys.readouterr().err
    assert list_exports(run) == ()


def test_a_full_disk_is_said_before(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(run.folder)._replace(free=1000)
    monkeypatch.setattr("core.after_training.export.plan.shutil.disk_usage", lambda _path: usage)
    with pytest.raises(SpecError, match="are free"):
        plan_export(run, "merged")


def test_a_second_export_at_the_same_time_is_refused(run: Run) -> None:
    name = launch.start(run, plan_export(run, "merged"))
    with pytest.raises(SpecError, match="is under way"):
        launch.start(run, plan_export(run, "merged"))
    launch.request_stop(run, name)


def test_a_stopped_export_is_not_listed(run: Run) -> None:
    name = launch.start(run, plan_export(run, "merged"))
    launch.request_stop(run, name)
    assert launch.status_of(run, name).state == "stopped"
    assert list_exports(run) == ()


def test_a_killed_export_is_said(run: Run) -> None:
    name = launch.start(run, plan_export(run, "merged"))
    folder = unfinished_folder(run, name)
    process = json.loads((folder / "process.json").read_text())
    kill(process["pid"])
    status = launch.wait(run, name, lambda _status: None)
    assert status.state == "failed"
    assert "killed" in status.error


def kill(pid: int) -> None:
    import psutil

    process = psutil.Process(pid)
    process.kill()
    process.wait()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"form": "onnx"}, "no form of export"),
        ({"form": "merged", "quant": "Q8_0"}, "merged has none"),
        ({"form": "gguf", "quant": "Q9"}, "'Q9' is not known"),
        ({"form": "merged", "base": "other"}, "'other' is neither"),
        ({"form": "gguf"}, "make export"),
    ],
)
def test_what_cannot_be_exported_is_said(
    run: Run, flags: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAILOR_EXPORT_TOOLS", "/nowhere")
    form = flags.pop("form")
    with pytest.raises(SpecError, match=said):
        plan_export(run, form, **flags)


def test_a_run_without_a_result_is_refused(home: Home) -> None:
    shutil.rmtree(bare_run(home, "bare") / "output", ignore_errors=True)
    with pytest.raises(SpecError, match="has no result"):
        plan_export(read(home, "bare"), "merged")
