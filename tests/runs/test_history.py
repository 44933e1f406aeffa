"""The history: thousands of runs, long curves, what people write about runs, the trash, bundles and comparisons."""

import json
import os
import time
import zipfile
from pathlib import Path

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import runs
from core.job import JobSpec, RunNotFound, SpecError
from core.resolve import resolve
from core.runs import Home, Run, listing, queue
from core.training.record.run_files import Record
from tests.builders.fake_runs import NEVER_END, NewRun

FINISHED = {"state": "finished", "step": 20, "max_steps": 20, "started": 1000.0, "updated": 4600.0}


def bare_run(home: Home, name: str, **fields: object) -> Path:
    """The folder of an ended run, as small as it can be."""
    folder = home.runs / name
    folder.mkdir()
    (folder / "job.json").write_text(JobSpec.parse(fields).to_json())
    runs.write_json(folder / "status.json", FINISHED)
    return folder


def write_metrics(folder: Path, steps: range, **more: object) -> None:
    with (folder / "metrics.jsonl").open("ab") as file:
        file.writelines(
            orjson.dumps({"step": step, "loss": step % 7, **more}) + b"\n" for step in steps
        )


@pytest.fixture
def finished(new_run: NewRun) -> Run:
    run = new_run(lora_r=4)
    runs.write_json(run.folder / "status.json", FINISHED)
    return runs.read(run.home, run.id)


@pytest.mark.parametrize("number_of_runs", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_many_runs_are_listed_and_looked_at_again_for_nothing(
    home: Home, number_of_runs: int
) -> None:
    job, status = JobSpec.parse({}).to_json(), json.dumps(FINISHED)
    for number in range(number_of_runs):
        folder = home.runs / f"run-{number:05d}"
        folder.mkdir()
        (folder / "job.json").write_text(job)
        (folder / "status.json").write_text(status)
        os.utime(folder, (number, number))
    os.utime(home.runs, (1, 1))
    assert len(runs.list_runs(home)) == number_of_runs
    (home.runs / "run-00000/status.json").write_text(
        "{}"
    )  # in place: the folder looks as before, so nobody looks
    listed, mark = runs.list_runs(home), runs.list_fingerprint(home)
    assert runs.list_runs(home) is listed
    assert runs.list_fingerprint(home) == mark
    assert {run.state for run in listed} == {"finished"}


def test_the_list_follows_what_is_made_changed_and_removed(home: Home) -> None:
    mark = runs.list_fingerprint(home)
    folder = bare_run(home, "a")
    assert [run.id for run in runs.list_runs(home)] == ["a"]
    assert (after := runs.list_fingerprint(home)) != mark
    runs.annotate(home, "a", title="New name")
    assert runs.list_runs(home)[0].name == "New name"
    assert (last := runs.list_fingerprint(home)) != after
    folder.rename(home.path / "elsewhere")
    assert runs.list_runs(home) == ()
    assert runs.list_fingerprint(home) != last


def test_what_another_process_changed_long_ago_is_seen(home: Home) -> None:
    folder = bare_run(home, "a")
    for place in (folder, home.runs):
        os.utime(place, (1, 1))
    assert runs.list_runs(home)[0].state == "finished"
    runs.write_json(folder / "status.json", {"state": "failed", "error": "Lost."})
    home.touch()
    assert runs.list_runs(home)[0].error == "Lost."


def test_a_waiting_run_is_seen_in_the_list_at_once(home: Home, new_run: NewRun) -> None:
    queue.submit(home, new_run(seed=NEVER_END))
    runs.list_runs(home)
    second = queue.submit(home, new_run())
    assert {run.id: run.state for run in runs.list_runs(home)}[second.id] == "queued"


def test_runs_are_found_by_their_words(home: Home) -> None:
    bare_run(home, "one", method="qlora")
    bare_run(home, "two")
    runs.annotate(home, "two", title="Ärger", notes="to the moon", tags=["paper"])
    listed = runs.list_runs(home)
    for words, ids in {
        "QLORA": ["one"],
        "moon PAPER": ["two"],
        "ärger": ["two"],
        "moon qlora": [],
        "": 2,
    }.items():
        found = [run.id for run in runs.search(listed, words)]
        assert found == ids or len(found) == ids, words


def test_words_about_a_run_are_kept_and_can_be_changed_one_by_one(finished: Run) -> None:
    runs.annotate(
        finished.home,
        finished.id,
        title=" First ",
        notes="two\nlines\t!",
        tags=["a", "b", "a", " "],
    )
    run = runs.annotate(finished.home, finished.id, title="Second")
    assert (run.name, run.about.notes, run.about.tags) == ("Second", "two\nlines\t!", ("a", "b"))
    assert run.id == finished.id


@pytest.mark.parametrize(
    "words",
    [
        {"title": "x" * 121},
        {"title": "a\nb"},
        {"notes": "\0"},
        {"tags": ["\u202e"]},
        {"tags": map(str, range(21))},
    ],
)
def test_words_that_are_too_many_or_treacherous_are_refused(
    finished: Run, words: dict[str, object]
) -> None:
    with pytest.raises(SpecError):
        runs.annotate(finished.home, finished.id, **words)  # type: ignore[arg-type]
    assert runs.read(finished.home, finished.id).about == runs.About()


def test_a_deleted_run_can_be_brought_back_until_the_trash_is_emptied(finished: Run) -> None:
    home = finished.home
    runs.delete(home, finished.id)
    assert runs.list_runs(home) == ()
    assert runs.deleted(home) == (finished.id,)
    assert runs.restore(home, finished.id).job == finished.job
    runs.delete(home, finished.id)
    assert runs.empty_trash(home) > 1000
    assert runs.deleted(home) == ()
    with pytest.raises(RunNotFound, match="no run"):
        runs.restore(home, finished.id)


@pytest.mark.parametrize("name", ["..", "../runs", "/etc", "a/b", "", "\0"])
def test_only_what_is_in_the_trash_is_brought_back(finished: Run, name: str) -> None:
    runs.delete(finished.home, finished.id)
    with pytest.raises(RunNotFound):
        runs.restore(finished.home, name)


def test_emptying_the_trash_never_follows_a_link(finished: Run, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("kept")
    (finished.folder / "output").symlink_to(tmp_path / "kept")
    runs.delete(finished.home, finished.id)
    (finished.home.trash / "linked").symlink_to(tmp_path / "kept")
    runs.empty_trash(finished.home)
    assert (tmp_path / "kept" / "file").read_text() == "kept"


def test_what_a_killed_app_left_of_the_trash_goes_with_the_next(home: Home) -> None:
    left = home.path / ".trash.0123abcd"
    left.mkdir()
    (left / "weights").write_bytes(b"x" * 1000)
    assert runs.empty_trash(home) == 1000
    assert not left.exists()


def test_the_disk_that_a_run_takes_is_the_sum_of_its_files(finished: Run) -> None:
    before = runs.disk_bytes(finished)
    (finished.folder / "output").mkdir()
    (finished.folder / "output" / "adapter.safetensors").write_bytes(b"0" * 5000)
    assert runs.disk_bytes(finished) == before + 5000


def test_time_and_cost_are_those_of_the_card(home: Home) -> None:
    bare_run(home, "a", gpu="a100-80gb")
    run = runs.read(home, "a")
    assert run.seconds == 3600
    assert run.usd
    assert run.usd > 0.5
    bare_run(home, "b")
    assert runs.read(home, "b").usd is None


def test_a_clock_that_was_set_costs_nothing(home: Home) -> None:
    folder = bare_run(home, "a", gpu="a100-80gb")
    runs.write_json(folder / "status.json", FINISHED | {"updated": 9e8, "seconds": 1800.0})
    assert runs.read(home, "a").seconds == 1800
    record = Record(folder)
    record.update(state="finished")
    assert 0 <= runs.read(home, "a").status.seconds < 60


def test_curves_keep_every_key_in_the_order_of_the_file(home: Home) -> None:
    folder = bare_run(home, "a")
    rows = [
        {"step": 1, "loss": 3},
        {"step": 2, "eval_loss": 2.5, "note": "x"},
        {"loss": 9},
        {"step": 2, "loss": 2},
    ]
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows) + '{"step": 3, "lo'
    )
    curves = runs.read_curves(folder)
    assert curves.keys() == {"loss", "eval_loss"}
    assert curves["loss"].steps.tolist() == [1, 2]
    assert curves["loss"].values.tolist() == [3, 2]
    assert curves["eval_loss"].values.tolist() == [2.5]


def test_only_new_lines_are_read_and_a_replaced_file_is_read_anew(home: Home) -> None:
    folder = bare_run(home, "a")
    write_metrics(folder, range(1, 11))
    assert len(runs.read_curves(folder)["loss"].values) == 10
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 11, "lo')
        file.flush()
        assert len(runs.read_curves(folder)["loss"].values) == 10
        file.write(b'ss": 5}\n')
    assert runs.read_curves(folder)["loss"].steps.tolist() == list(range(1, 12))
    kept = b"".join((folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)[:6])
    (folder / "metrics.new").write_bytes(kept)
    (folder / "metrics.new").replace(folder / "metrics.jsonl")  # as a resumed run does
    write_metrics(folder, range(7, 30))
    assert runs.read_curves(folder)["loss"].steps.tolist() == list(range(1, 30))
    (folder / "metrics.jsonl").unlink()
    assert not runs.read_curves(folder)


def test_a_file_rewritten_in_place_is_read_anew(home: Home) -> None:
    folder = bare_run(home, "a")
    write_metrics(folder, range(1, 100))
    runs.read_curves(folder)
    (folder / "metrics.jsonl").write_bytes(b"")
    write_metrics(folder, range(1001, 1200))
    assert runs.read_curves(folder)["loss"].steps[0] == 1001


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5000), st.integers(10, 300))
def test_a_thinned_curve_keeps_ends_highs_and_lows(values: list[float], max_points: int) -> None:
    column = runs.curves.Column()
    column.append(np.arange(len(values), dtype=float), np.array(values))
    thin = column.thinned(max_points)
    assert len(thin.values) <= max_points
    assert np.all(np.diff(thin.steps) > 0)
    assert (thin.values.max(), thin.values.min()) == (max(values), min(values))
    assert (thin.values[0], thin.values[-1]) == (values[0], values[-1])
    assert all(
        values[int(step)] == value for step, value in zip(thin.steps, thin.values, strict=True)
    )


def test_gaps_of_a_long_curve_stay_gaps(home: Home) -> None:
    column = runs.curves.Column()
    values = np.ones(100_000)
    values[5000:5010] = np.nan
    column.append(np.arange(100_000.0), values)
    assert np.isnan(column.thinned(2000).values).any()
    assert len(column.thinned(2000).values) <= 2000


def test_a_long_curve_is_read_in_pieces_that_fit_together(home: Home) -> None:
    folder = bare_run(home, "a")
    write_metrics(folder, range(20_000), grad_norm=1.5, tokens_per_second=3000.25)
    curves = runs.read_curves(folder, max_points=100_000)
    assert curves["loss"].steps.tolist() == list(range(20_000))
    assert curves["loss"].values.tolist() == [step % 7 for step in range(20_000)]
    assert len(runs.read_curves(folder)["loss"].values) <= 2000


def test_runs_are_compared_by_what_differs_and_by_how_they_came_out(home: Home) -> None:
    first, second = bare_run(home, "a", lora_r=4, seed=1), bare_run(home, "b", lora_r=8, seed=1)
    write_metrics(first, range(1, 5), eval_loss=2.5)
    found = {each.name: each for each in runs.compare([runs.read(home, "a"), runs.read(home, "b")])}
    assert found["lora_r"].values == (4, 8)
    assert "seed" not in found
    assert not found["lora_r"].is_result
    assert found["eval_loss"].values == (2.5, None)
    assert found["eval_loss"].is_result
    assert found["loss"].values == (4, None)
    assert second.exists()


@pytest.mark.parametrize(
    ("files", "complete"),
    [
        ({1: ["manifest.json"], 2: ["trainer_state.json"]}, [True, False]),
        ({1: ["trainer_state.json"], 2: []}, [True, False]),
        ({}, []),
    ],
)
def test_a_checkpoint_is_complete_by_its_manifest(
    home: Home, files: dict[int, list[str]], complete: object
) -> None:
    folder = bare_run(home, "a")
    for step, names in files.items():
        place = folder / f"checkpoints/checkpoint-{step}"
        place.mkdir(parents=True)
        for name in ("model.safetensors", *names):
            (place / name).write_text("12345")
    (folder / "checkpoints/.checkpoint-9.new").mkdir(parents=True)
    found = runs.checkpoints(folder)
    assert [each.is_complete for each in found] == complete
    assert [each.step for each in found] == list(files)
    assert runs.has_checkpoint(folder) == any(complete)
    assert all(each.num_bytes >= 5 for each in found)


def test_the_data_of_a_run_is_known_by_its_hash(
    home: Home, new_run: NewRun, tmp_path: Path
) -> None:
    run = new_run()
    manifest = runs.read_json(run.folder / "data/manifest.json")
    assert manifest["train.jsonl"]["sha256"] == run.job.dataset_sha256 != ""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "changed"}\n')
    resolved = resolve({"dataset": str(rows), "dataset_sha256": run.job.dataset_sha256})
    with pytest.raises(SpecError, match="has changed"):
        runs.create(home, resolved, {})
    assert not runs.fields_again(run)["dataset_sha256"]


@pytest.mark.parametrize(
    "row",
    [
        {"text": "plain"},
        {"prompt": "a", "completion": "b"},
        {
            "prompt": [{"role": "user", "content": "a"}],
            "completion": [{"role": "assistant", "content": "b"}],
        },
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


def test_the_versions_of_the_libraries_stand_in_the_folder(new_run: NewRun) -> None:
    lines = (new_run().folder / "requirements.txt").read_text().splitlines()
    assert lines[0].startswith("# Python 3.")
    assert any(line.startswith("torch==") and "+" not in line for line in lines)


def test_a_bundle_holds_what_it_takes_and_nothing_else(finished: Run, tmp_path: Path) -> None:
    (finished.folder / "log.txt").write_text("secret of the log")
    (finished.folder / "data" / "linked.jsonl").symlink_to("/etc/passwd")
    os.link(finished.folder / "job.json", finished.folder / "data" / "twin.jsonl")
    status = FINISHED | {"pid": 7, "boot_id": "b", "error": f"{Path.home()}/x is gone"}
    runs.write_json(finished.folder / "status.json", status)
    bundle = runs.write_bundle(runs.read(finished.home, finished.id), tmp_path / "run.zip")
    with zipfile.ZipFile(bundle) as opened:
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


def test_a_bundle_says_which_folders_it_does_not_bring(new_run: NewRun, tmp_path: Path) -> None:
    (tmp_path / "before").mkdir()
    for run, said in (
        (new_run(adapter=str(tmp_path / "before")), "its `adapter` is a folder"),
        (new_run(), ""),
    ):
        with zipfile.ZipFile(runs.write_bundle(run, tmp_path / f"{run.id}.zip")) as bundle:
            told = bundle.read("RUN.md").decode()
        assert said in told
        assert ("is a folder of the machine" in told) == bool(said)


def test_a_bundle_brings_the_weights_only_if_asked(finished: Run, tmp_path: Path) -> None:
    (finished.folder / "output").mkdir()
    (finished.folder / "output" / "adapter_model.safetensors").write_bytes(b"weights")
    for with_output in (False, True):
        bundle = runs.write_bundle(finished, tmp_path / "run.zip", with_output=with_output)
        names = zipfile.ZipFile(bundle).namelist()
        assert ("results/output/adapter_model.safetensors" in names) == with_output


def test_a_bundle_runs_again_without_tailor(new_run: NewRun, tmp_path: Path) -> None:
    import subprocess
    import sys

    with zipfile.ZipFile(runs.write_bundle(new_run(), tmp_path / "run.zip")) as bundle:
        bundle.extractall(tmp_path / "again")
    subprocess.run(
        [sys.executable, "-m", "training", "job.json"], cwd=tmp_path / "again", check=True
    )
    assert runs.read_json(tmp_path / "again" / "status.json")["state"] == "finished"


def test_a_fresh_folder_is_looked_at_again(home: Home) -> None:
    bare_run(home, "a")
    runs.list_runs(home)
    now = time.time_ns()
    entry = listing._listing(home)._entries["a"]
    assert not entry.is_settled
    assert now - entry.changed_ns < listing.COARSE_CLOCK_NS
