"""Bundle: a run that can be repeated elsewhere."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from core import runs
from core.after_training import bundle
from core.job import JobSpec, SpecError
from core.resolve import resolve
from core.runs import Home, Run
from core.runs.engines import Placement, Submission, write_submission
from core.runs.files import read_json
from core.training.contract.files import write_json
from tests.builders.fake_runs import (
    FINISHED,
    NewRun,
)
from tests.builders.paths import ROOT
from tests.builders.weight_headers import write_header

NUM_LAYERS = 4  # of the demo model
SHAPES = {"A": (4, 128), "B": (128, 4)}


def test_data_that_has_changed_makes_no_run(home: Home, new_run: NewRun, tmp_path: Path) -> None:
    run = new_run()
    manifest = read_json(run.folder / "data/manifest.json")
    assert manifest["train.jsonl"]["sha256"] == run.job.dataset_sha256 != ""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "changed"}\n')
    resolved = resolve({"dataset": str(rows), "dataset_sha256": run.job.dataset_sha256})
    with pytest.raises(SpecError, match="has changed"):
        runs.create(home, resolved, {})
    assert not run.fields_again()["dataset_sha256"]


@pytest.mark.parametrize(
    "row",
    [
        {"text": "plain"},
        {"prompt": "a", "completion": "b"},
    ],
)
def test_evaluation_data_of_another_kind_makes_no_run(
    home: Home, tmp_path: Path, row: dict[str, object]
) -> None:
    train, held_out = tmp_path / "train.jsonl", tmp_path / "eval.jsonl"
    train.write_text('{"question": "a", "answer": "b"}\n')
    held_out.write_text(json.dumps(row) + "\n")
    with pytest.raises(
        SpecError, match=r"eval_dataset: train.jsonl holds .* but eval.jsonl holds "
    ):
        runs.create(home, resolve({"dataset": str(train), "eval_dataset": str(held_out)}), {})
    assert not [*home.runs.iterdir()]


def test_the_folder_has_the_versions_of_the_libraries(new_run: NewRun) -> None:
    lines = (new_run().folder / "requirements.txt").read_text().splitlines()
    assert lines[0].startswith("# Python 3.")
    assert any(line.startswith("torch==") and "+" not in line for line in lines)


def test_a_bundle_has_everything_needed_and_nothing_else(finished: Run, tmp_path: Path) -> None:
    (finished.folder / "log.txt").write_text("secret of the log")
    (finished.folder / "data" / "linked.jsonl").symlink_to("/etc/passwd")
    os.link(finished.folder / "job.json", finished.folder / "data" / "twin.jsonl")
    status = FINISHED | {"pid": 7, "boot_id": "b", "error": f"{Path.home()}/x is gone"}
    write_json(finished.folder / "status.json", status)
    path = bundle.write_bundle(runs.read(finished.home, finished.id), tmp_path / "run.zip")
    with zipfile.ZipFile(path) as opened:
        names = set(opened.namelist())
        ours = [name for name in names if not name.startswith(("model/", "training/"))]
        text = b"\n".join(opened.read(name) for name in ours).decode()
        job = json.loads(opened.read("job.json"))
    assert {
        "RUN.md",
        "job.json",
        "requirements.txt",
        "training/__main__.py",
        "data/manifest.json",
    } <= names
    assert not any(
        name.startswith(("/", "..")) or "linked" in name or "twin" in name for name in names
    )
    assert job["model"] == "model"
    assert "model/model.safetensors" in names
    assert str(Path.home()) not in text
    assert "boot_id" not in text
    assert "secret" not in text


def write_adapter(folder: Path) -> None:
    """Write an adapter of rank 4 for one projection in every layer of the demo model."""
    folder.mkdir()
    tensors = {}
    for index in range(NUM_LAYERS):
        layer = f"base_model.model.model.layers.{index}.self_attn.q_proj"
        for side, shape in SHAPES.items():
            tensors[f"{layer}.lora_{side}.weight"] = shape
    write_header(
        folder / "adapter_model.safetensors", {name: ("F32", tensors[name]) for name in tensors}
    )
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings))


def test_a_bundle_names_the_folders_that_it_leaves_out(new_run: NewRun, tmp_path: Path) -> None:
    write_adapter(tmp_path / "before")
    for run, note in (
        (new_run(adapter=str(tmp_path / "before")), "its `adapter` is a folder"),
        (new_run(), ""),
    ):
        with zipfile.ZipFile(bundle.write_bundle(run, tmp_path / f"{run.id}.zip")) as opened:
            text = opened.read("RUN.md").decode()
        assert note in text
        assert ("is a folder of the machine" in text) == bool(note)


def told_by_bundle(run: Run, target: Path) -> str:
    """Return RUN.md of a bundle, with its broken lines in one piece."""
    with zipfile.ZipFile(bundle.write_bundle(run, target)) as opened:
        return opened.read("RUN.md").decode().replace("\\\n        ", "")


def test_a_bundle_of_several_devices_has_the_line_of_torchrun(
    new_run: NewRun, tmp_path: Path
) -> None:
    told = told_by_bundle(new_run(num_devices=4), tmp_path / "run.zip")
    assert "    torchrun --standalone --nproc-per-node 4 -m training job.json\n" in told


@pytest.mark.parametrize(("num_devices", "nodes", "each"), [(4, 2, 2), (3, 3, 1)])
def test_the_line_of_several_machines_starts_as_many_processes(
    new_run: NewRun, tmp_path: Path, num_devices: int, nodes: int, each: int
) -> None:
    told = told_by_bundle(new_run(num_devices=num_devices), tmp_path / "run.zip")
    assert f"    torchrun --nnodes {nodes} --nproc-per-node {each} --rdzv-backend c10d " in told


def test_a_bundle_of_several_machines_has_their_line(new_run: NewRun, tmp_path: Path) -> None:
    run = new_run(num_devices=2)
    inode = run.folder.stat().st_ino
    write_submission(Submission(run.folder, Placement("torchrun", nodes=3), "", 0.0, inode))
    told = told_by_bundle(runs.read(run.home, run.id), tmp_path / "run.zip")
    assert "torchrun --nnodes 3 --nproc-per-node 2 " in told


def test_a_bundle_of_one_device_has_no_line_of_torchrun(new_run: NewRun, tmp_path: Path) -> None:
    assert "--nproc-per-node" not in told_by_bundle(new_run(), tmp_path / "run.zip")


@pytest.mark.training
def test_the_line_of_torchrun_in_a_bundle_trains(new_run: NewRun, tmp_path: Path) -> None:
    run = new_run(num_devices=2, max_steps=2, dataset="demo")
    shutil.copytree(ROOT / "core" / "training", run.folder / "training", dirs_exist_ok=True)
    told = told_by_bundle(run, tmp_path / "run.zip")
    with zipfile.ZipFile(tmp_path / "run.zip") as opened:
        opened.extractall(tmp_path / "again")
    (line,) = (line for line in told.splitlines() if "--standalone" in line)
    _torchrun, *words = shlex.split(line)
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words],
        cwd=tmp_path / "again",
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
    )
    assert read_json(tmp_path / "again" / "status.json")["state"] == "finished"


def test_a_bundle_runs_again_without_tailor(new_run: NewRun, tmp_path: Path) -> None:

    with zipfile.ZipFile(bundle.write_bundle(new_run(), tmp_path / "run.zip")) as opened:
        opened.extractall(tmp_path / "again")
    subprocess.run(
        [sys.executable, "-m", "training", "job.json"], cwd=tmp_path / "again", check=True
    )
    assert read_json(tmp_path / "again" / "status.json")["state"] == "finished"


def test_a_bundle_knows_every_field_that_may_name_a_folder() -> None:
    named = {name for name, field in JobSpec.model_fields.items() if field.annotation is str}
    paths = {name for name in named if "folder" in (JobSpec.model_fields[name].description or "")}
    assert paths == set(bundle.MODEL_FIELDS)
