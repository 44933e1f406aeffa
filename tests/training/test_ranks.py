"""Test training on several devices: the same losses as on one, and no rank is left waiting."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from core.training.ranks.rank import read_words
from tests.builders.paths import ROOT
from tests.builders.ranks import (
    finish,
    has_stepped,
    make_ranked_run,
    processes_in,
    start,
    wait_until,
)
from tests.builders.training_runs import (
    FAILED,
    FINISHED,
    STOPPED,
    change_job,
    checkpoint_steps,
    error_of,
    lines_of,
    losses_of,
    status_of,
)

pytestmark = pytest.mark.training
MANY_STEPS = 400
STEPS_OF_EPOCH = 3


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on one device, with evaluations and a checkpoint."""
    run = make_ranked_run(tmp_path_factory.mktemp("alone") / "run", eval_steps=1, save_steps=2)
    change_job(run, eval_dataset="data/eval.jsonl")
    assert finish(run) == FINISHED
    return run


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run on two devices."""
    folder = tmp_path_factory.mktemp("together") / "run"
    run = make_ranked_run(folder, num_devices=2, eval_steps=1, save_steps=2)
    change_job(run, eval_dataset="data/eval.jsonl")
    assert finish(run) == FINISHED
    return run


def test_two_devices_have_the_losses_of_one(alone: Path, together: Path) -> None:
    assert losses_of(together) == pytest.approx(losses_of(alone), abs=1e-4)


def test_each_line_of_the_metrics_is_written_once(together: Path) -> None:
    steps = [row["step"] for row in lines_of(together) if "loss" in row]
    assert steps == sorted(set(steps))


@pytest.mark.parametrize("what", ["rank_memory_{}_bytes", "rank_seconds_{}"])
def test_memory_and_time_of_all_ranks_are_kept(together: Path, what: str) -> None:
    rows = [row for row in lines_of(together) if "loss" in row]
    assert all(0 < row[what.format("min")] <= row[what.format("max")] for row in rows)


def test_one_device_has_no_ranks_to_compare(alone: Path) -> None:
    assert not [row for row in lines_of(alone) if "rank_seconds_min" in row]


def test_an_evaluation_is_that_of_one_device(alone: Path, together: Path) -> None:
    losses = [
        [row["eval_loss"] for row in lines_of(run) if "eval_loss" in row]
        for run in (alone, together)
    ]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)


def test_checkpoints_of_two_devices_are_complete(together: Path) -> None:
    assert checkpoint_steps(together) == [2, 3]


def test_the_run_is_known_by_its_leader(together: Path) -> None:
    ranks = [read_words(together / "ranks" / f"{index}.json")["pid"] for index in range(2)]
    assert status_of(together)["pid"] not in ranks


def test_sharding_divides_every_tensor(tmp_path: Path, alone: Path) -> None:
    run = make_ranked_run(tmp_path / "run", num_devices=2, parallelism="fsdp")
    assert finish(run) == FINISHED  # it fails by itself if a tensor is whole
    assert losses_of(run) == pytest.approx(losses_of(alone), abs=1e-4)


@pytest.fixture
def long_run(tmp_path: Path) -> Path:
    return make_ranked_run(tmp_path / "run", num_devices=2, max_steps=MANY_STEPS, save_steps=1000)


def test_a_killed_rank_ends_the_run_and_is_named(long_run: Path) -> None:
    program = start(long_run)
    wait_until(lambda: has_stepped(long_run))
    second: Any = read_words(long_run / "ranks" / "1.json")["pid"]
    psutil.Process(second).kill()
    assert program.wait(30) == FAILED
    assert "Process 2 of 2, on device 1, was killed" in status_of(long_run)["error"]
    assert processes_in(long_run) == []


def test_no_rank_outlives_its_leader(long_run: Path) -> None:
    program = start(long_run)
    wait_until(lambda: has_stepped(long_run))
    program.kill()
    program.wait()
    wait_until(lambda: processes_in(long_run) == [])


def test_a_stopped_run_goes_on_with_one_device(tmp_path: Path, alone: Path) -> None:
    run = make_ranked_run(tmp_path / "run", num_devices=2, max_steps=MANY_STEPS)
    program = start(run)
    wait_until(lambda: has_stepped(run))
    program.send_signal(signal.SIGTERM)
    assert program.wait(60) == STOPPED
    steps = checkpoint_steps(run)[-1]
    (run / "stop").unlink()
    change_job(run, num_devices=1, max_steps=MANY_STEPS)
    program = start(run)
    wait_until(lambda: has_stepped(run, steps + 2))
    program.send_signal(signal.SIGTERM)
    assert program.wait(60) == STOPPED
    assert status_of(run)["gradient_accumulation_steps"] == 2


@pytest.mark.parametrize(
    ("parallelism", "before", "after"), [("ddp", 1, 2), ("ddp", 2, 1), ("fsdp", 2, 2)]
)
def test_a_run_goes_on_exactly_with_other_devices(
    tmp_path: Path, alone: Path, parallelism: str, before: int, after: int
) -> None:
    run = make_ranked_run(
        tmp_path / "run",
        num_devices=before,
        parallelism=parallelism,
        save_steps=1,
        save_total_limit=3,
    )
    assert finish(run) == FINISHED
    go_on_from_first_step(run, num_devices=after)
    assert finish(run) == FINISHED
    assert status_of(run)["resumed_at"] == [1]
    assert losses_of(run) == pytest.approx(losses_of(alone), abs=1e-4)


@pytest.mark.slow
def test_a_divided_run_goes_on_exactly_with_more_devices(tmp_path: Path, alone: Path) -> None:
    run = make_ranked_run(tmp_path / "run", num_devices=2, parallelism="fsdp", save_steps=1)
    assert finish(run) == FINISHED
    go_on_from_first_step(run, num_devices=4)
    assert finish(run) == FINISHED
    assert losses_of(run) == pytest.approx(losses_of(alone), abs=1e-4)


@pytest.mark.parametrize("accumulation", [1, 2])  # with 2 the rows of a step are sorted
def test_a_run_goes_on_exactly_in_its_second_epoch(tmp_path: Path, accumulation: int) -> None:
    run = make_ranked_run(
        tmp_path / "run",
        num_devices=2,
        max_steps=STEPS_OF_EPOCH + 3,
        save_steps=STEPS_OF_EPOCH + 2,
        gradient_accumulation_steps=accumulation,
    )
    (run / "data" / "train.jsonl").write_text(first_rows(run, 8 * accumulation * STEPS_OF_EPOCH))
    assert finish(run) == FINISHED
    undisturbed = losses_of(run)
    go_on_from_first_step(run, num_devices=2)
    assert finish(run) == FINISHED
    assert status_of(run)["resumed_at"] == [STEPS_OF_EPOCH + 2]
    assert losses_of(run) == pytest.approx(undisturbed, abs=1e-6)


def first_rows(run: Path, count: int) -> str:
    """Return the first training rows of a run."""
    lines = (run / "data" / "train.jsonl").read_text().splitlines(keepends=True)
    return "".join(lines[:count])


def go_on_from_first_step(run: Path, num_devices: int) -> None:
    """Take a finished run back to its first checkpoint, to be resumed on other devices."""
    shutil.rmtree(run / "output")
    for step in checkpoint_steps(run)[1:]:
        shutil.rmtree(run / "checkpoints" / f"checkpoint-{step}")
    (run / "status.json").unlink()
    change_job(run, num_devices=num_devices, per_device_train_batch_size=8 // num_devices)


@pytest.mark.slow
def test_a_divided_run_is_not_resumed_whole(tmp_path: Path) -> None:
    run = make_ranked_run(tmp_path / "run", num_devices=2, parallelism="fsdp", save_steps=1)
    assert finish(run) == FINISHED
    shutil.rmtree(run / "output")
    shutil.rmtree(run / "checkpoints" / "checkpoint-3")
    (run / "status.json").unlink()
    change_job(run, num_devices=1)
    assert finish(run) == FAILED
    assert "whose model was divided among devices: set parallelism to fsdp" in error_of(run)


def test_one_device_divides_nothing(tmp_path: Path) -> None:
    run = make_ranked_run(tmp_path / "run", parallelism="fsdp")
    assert finish(run) == FINISHED


@pytest.mark.slow
@pytest.mark.parametrize("parallelism", ["ddp", "fsdp"])
def test_the_demo_trains_on_two_devices(tmp_path: Path, parallelism: str) -> None:
    asked = ("--num-devices", "2", "--parallelism", parallelism, "--max-steps", "2")
    command = [sys.executable, "app.py", "train", "--demo", *asked, "--home", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True)
    (status,) = (tmp_path / "runs").glob("*/status.json")
    assert read_words(status)["state"] == "finished"  # which fails by itself if a tensor is whole


@pytest.mark.slow
def test_a_rank_that_hangs_ends_the_run_and_is_named(long_run: Path) -> None:
    program = start(long_run)
    wait_until(lambda: has_stepped(long_run))
    second: Any = read_words(long_run / "ranks" / "1.json")["pid"]
    psutil.Process(second).suspend()
    assert program.wait(40) == FAILED
    assert "Process 2 of 2, on device 1, has not answered" in status_of(long_run)["error"]
    assert processes_in(long_run) == []
