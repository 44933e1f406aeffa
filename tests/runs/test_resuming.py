"""Test runs that are resumed on another number of devices: batch, estimate, refusals."""

import json
import shutil
from typing import Any

import pytest

from core import runs
from core.job import SpecError
from core.resolve import resolve
from core.runs import Home, Run, results, sentences
from core.runs.engines import ClusterState, Placement, Submission, write_submission
from core.runs.files import read_json
from core.training.contract.files import write_json
from tests.builders.fake_runs import NewRun, write_metrics
from tests.builders.fake_slurm import FakeSlurm
from ui.render import plots

FIRST_START, SECOND_START = 1000.0, 2000.0


def stopped_run(home: Home, new_run: NewRun, **fields: object) -> Run:
    """Return a run that was stopped after a checkpoint of step 4, with other fields in its job."""
    run = new_run()
    path = run.folder / "job.json"
    write_json(path, {**read_json(path), **fields})
    write_json(run.folder / "status.json", {"state": "stopped", "step": 6})
    checkpoint = run.folder / "checkpoints" / "checkpoint-4"
    checkpoint.mkdir(parents=True)
    write_json(checkpoint / "manifest.json", {"step": 4, "files": {}})
    return runs.read(home, run.id)


@pytest.mark.parametrize(("before", "after", "passes"), [(1, 2, 4), (2, 1, 16), (2, 4, 4)])
def test_a_run_keeps_the_rows_of_a_step_on_other_devices(
    home: Home, new_run: NewRun, before: int, after: int, passes: int
) -> None:
    batch = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 8}
    run = stopped_run(home, new_run, num_devices=before, parallelism="ddp", **batch)
    job = results.change_num_devices(home, run.id, str(after)).job
    assert (job.num_devices, job.gradient_accumulation_steps) == (after, passes)
    assert job.parallelism == "ddp"


def test_a_batch_that_is_too_large_for_more_devices_is_divided(home: Home, new_run: NewRun) -> None:
    batch = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
    run = stopped_run(home, new_run, **batch)
    job = results.change_num_devices(home, run.id, "2").job
    assert (job.per_device_train_batch_size, job.gradient_accumulation_steps) == (4, 1)


@pytest.mark.parametrize(
    ("fields", "number", "said"),
    [
        ({"num_devices": 2, "parallelism": "fsdp"}, "1", "divided among devices; give 2 or more"),
        ({"num_devices": 2, "parallelism": "ddp"}, "0", "0 cannot continue this run"),
        ({"num_devices": 2, "parallelism": "ddp"}, "two", "is not a whole number"),
        ({"num_devices": 2, "parallelism": "ddp"}, "7", "7 devices cannot share the"),
    ],
)
def test_devices_that_cannot_continue_a_run_leave_it_as_it_is(
    home: Home, new_run: NewRun, fields: dict[str, object], number: str, said: str
) -> None:
    run = stopped_run(home, new_run, **fields)
    with pytest.raises(SpecError, match=said):
        results.change_num_devices(home, run.id, number)
    assert runs.read(home, run.id).job == run.job


def test_a_run_without_a_checkpoint_need_not_stay_divided(home: Home, new_run: NewRun) -> None:
    run = stopped_run(home, new_run, num_devices=2, parallelism="fsdp")
    shutil.rmtree(run.folder / "checkpoints")
    job = results.change_num_devices(home, run.id, 1).job
    assert (job.num_devices, job.parallelism) == (1, "ddp")


def test_nodes_count_as_devices(home: Home, new_run: NewRun) -> None:
    batch = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    run = on_two_nodes(stopped_run(home, new_run, parallelism="ddp", **batch))
    job = results.change_num_devices(home, run.id, 1, nodes=1).job
    assert job.effective_batch_size == 16
    assert job.num_devices == 1


def test_a_model_that_was_divided_among_nodes_stays_divided(home: Home, new_run: NewRun) -> None:
    run = on_two_nodes(stopped_run(home, new_run, parallelism="fsdp"))
    with pytest.raises(SpecError, match="divided among devices"):
        results.change_num_devices(home, run.id, 1, nodes=1)
    assert results.change_num_devices(home, run.id, 2, nodes=1).job.parallelism == "fsdp"


def on_two_nodes(run: Run) -> Run:
    """Return a run that has trained on one device of each of two nodes."""
    inode = run.folder.stat().st_ino
    ended = ClusterState(stage="ended", word="COMPLETED")
    placement = Placement("slurm", nodes=2)
    write_submission(Submission(run.folder, placement, "7", 1.0, inode, ended))
    return runs.read(run.home, run.id)


def test_a_finished_run_keeps_its_devices(finished: Run) -> None:
    with pytest.raises(SpecError, match="is finished"):
        results.change_num_devices(finished.home, finished.id, 2)


# The estimate


def trained_on_one(home: Home, new_run: NewRun) -> Run:
    """Return a run with an attempt that ended after its checkpoint, and its metrics."""
    run = stopped_run(home, new_run)
    attempt(run, FIRST_START, "stopped", 6)
    write_metrics(run.folder, range(1, 7), device_used_bytes=2**30)
    return runs.read(home, run.id)


def attempt(run: Run, started: float, state: str, step: int) -> None:
    """Let a run have made an attempt that ended in a state at a step."""
    status = {"state": state, "step": step, "max_steps": 20, "started": started}
    write_json(run.folder / "status.json", status)


def total(run: Run) -> int:
    found = run.prediction().total_bytes
    assert found
    return found


def test_an_estimate_follows_the_devices(home: Home, new_run: NewRun) -> None:
    run = trained_on_one(home, new_run)
    results.change_num_devices(home, run.id, 2)
    attempt(run, SECOND_START, "running", 5)
    resumed = runs.read(home, run.id)
    assert total(resumed) != total(run)
    assert resumed.prediction() == resumed.estimates()[-1].prediction


def test_an_attempt_is_compared_with_the_estimate_that_it_was_made_with(
    home: Home, new_run: NewRun
) -> None:
    run = trained_on_one(home, new_run)
    results.change_num_devices(home, run.id, 2)
    assert runs.read(home, run.id).prediction() == run.prediction()


def test_each_estimate_holds_for_the_steps_of_its_attempt(home: Home, new_run: NewRun) -> None:
    run = trained_on_one(home, new_run)
    results.change_num_devices(home, run.id, 2)
    attempt(run, SECOND_START, "running", 9)
    first, second = runs.read(home, run.id).estimates()
    assert first.prediction == run.prediction()
    assert (first.after_step, first.last_step) == (0, 4)
    assert (second.after_step, second.last_step) == (4, None)


def test_devices_that_never_trained_leave_no_estimate(home: Home, new_run: NewRun) -> None:
    run = trained_on_one(home, new_run)
    for number in (2, 4):
        results.change_num_devices(home, run.id, number)
    attempt(run, SECOND_START, "running", 5)
    assert len(runs.read(home, run.id).estimates()) == 2


def test_the_rows_of_an_estimate_stay(home: Home, new_run: NewRun) -> None:
    run = trained_on_one(home, new_run)
    fields = read_json(run.folder / "estimate.json")
    rows = {"num_rows": 300, "mean_tokens": 50.0, "p95_tokens": 60, "max_tokens": 70}
    write_json(run.folder / "estimate.json", {**fields, "rows": rows})
    results.change_num_devices(home, run.id, 2)
    assert read_json(run.folder / "estimate.json")["rows"] == rows


def test_the_memory_plot_shows_each_prediction_at_its_steps(home: Home, new_run: NewRun) -> None:
    run = trained_on_one(home, new_run)
    results.change_num_devices(home, run.id, 2)
    attempt(run, SECOND_START, "running", 9)
    drawn = plots.figure(plots.PLOTS["memory"], runs.read(home, run.id))
    levels = [each for each in drawn.layout.shapes if each.name.startswith("predicted")]
    assert [(each.x0, each.x1) for each in levels] == [(0, 4), (4, 9)]


def test_speed_is_compared_with_the_forecast_of_its_devices(home: Home, new_run: NewRun) -> None:
    run = trained_on_one(home, new_run)
    results.change_num_devices(home, run.id, 2)
    forecast: dict[str, Any] = read_json(run.folder / "estimate.json")
    write_json(run.folder / "estimate.json", {**forecast, "speed": {"tokens_per_second": 200.0}})
    (run.folder / "metrics.jsonl").unlink()
    write_metrics(run.folder, range(1, 5), tokens_per_second=100.0)
    write_metrics(run.folder, range(5, 15), tokens_per_second=200.0)
    attempt(run, SECOND_START, "finished", 14)
    job = resolve(run.fields_again())
    status = read_json(run.folder / "status.json")
    write_json(run.folder / "status.json", {**status, "device": "CPU"})
    [(_predicted, measured)] = runs.past_runs.speeds(home, job)
    assert measured == 200.0


# Refusals leave a run as it is


def files_of(run: Run) -> dict[str, bytes]:
    names = ("job.json", "estimate.json", "earlier_estimates.json")
    paths = [run.folder / name for name in names]
    return {path.name: path.read_bytes() for path in paths if path.exists()}


def test_a_cluster_that_refuses_leaves_the_run_as_it_is(
    home: Home, new_run: NewRun, slurm: FakeSlurm
) -> None:
    run = trained_on_one(home, new_run)
    before = files_of(run)
    slurm.refuses("sbatch", "Invalid account\n")
    with pytest.raises(SpecError, match="Invalid account"):
        results.resume_on(home, run, 2, Placement("slurm"))
    assert files_of(run) == before
    assert runs.read(home, run.id).state == "stopped"


def test_a_node_with_fewer_devices_leaves_the_run_as_it_is(
    home: Home, new_run: NewRun, slurm: FakeSlurm
) -> None:
    run = trained_on_one(home, new_run)
    before = files_of(run)
    with pytest.raises(SpecError, match="too few GPUs"):
        results.resume_on(home, run, 4, Placement("slurm", gres="gpu:2"))
    assert files_of(run) == before


def test_a_script_of_a_user_survives_a_refusal(
    home: Home, new_run: NewRun, slurm: FakeSlurm
) -> None:
    run = trained_on_one(home, new_run)
    script = run.folder / "submit.sh"
    script.write_text("#!/bin/bash\n#SBATCH --mem=64G\n")
    slurm.refuses("sbatch", "Invalid account\n")
    with pytest.raises(SpecError, match="Invalid account"):
        results.resume_on(home, run, 2, Placement("slurm"))
    assert "--mem=64G" in script.read_text()


def test_a_script_of_a_user_is_kept_beside_that_for_other_devices(
    home: Home, new_run: NewRun, slurm: FakeSlurm
) -> None:
    run = trained_on_one(home, new_run)
    (run.folder / "submit.sh").write_text("#!/bin/bash\n#SBATCH --mem=64G\n")
    before = sentences.earlier_script(run)
    run = results.resume_on(home, run, 2, Placement("slurm"))
    assert "--mem=64G" in (run.folder / "submit.sh.before").read_text()
    assert "--mem=64G" not in (run.folder / "submit.sh").read_text()
    assert "kept as submit.sh.before" in sentences.script_sentence(run, before)


def test_a_run_without_a_new_script_says_nothing_of_it(home: Home, new_run: NewRun) -> None:
    run = trained_on_one(home, new_run)
    (run.folder / "submit.sh.before").write_text("#!/bin/bash\n")
    assert sentences.script_sentence(run, sentences.earlier_script(run)) == ""


def test_as_many_devices_as_before_leave_the_script_of_a_user(home: Home, new_run: NewRun) -> None:
    run = trained_on_one(home, new_run)
    (run.folder / "submit.sh").write_text("#SBATCH --mem=64G\n")
    results.change_num_devices(home, run.id, "1")
    assert (run.folder / "submit.sh").exists()


def test_a_damaged_record_of_estimates_is_none(home: Home, new_run: NewRun) -> None:
    run = trained_on_one(home, new_run)
    damaged = {"earlier": [3, {"started": "x", "step": [], "estimate": 7}]}
    (run.folder / "earlier_estimates.json").write_text(json.dumps(damaged))
    assert run.prediction().total_bytes
