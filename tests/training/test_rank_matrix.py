"""Every stage, method and division on two devices: losses, stop, resume, and a rank that is killed.

Each row of the table is one test of some minutes.
"""

import shutil
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest

from core.training.ranks.rank import read_words
from tests.builders.ranks import finish, make_ranked_run, processes_in, start, wait_until
from tests.builders.training_runs import (
    FAILED,
    FINISHED,
    STOPPED,
    change_job,
    checkpoint_steps,
    lines_of,
    losses_of,
    status_of,
)

pytestmark = [pytest.mark.training, pytest.mark.slow]
SECONDS_TO_NOTICE = 30
ROUNDING, OF_QUANTIZED = 1e-4, 2e-3
"""Differences of losses that are none: sums in another order, and packed weights in passing."""
NUM_STEPS = {"sft": 24, "dpo": 16, "grpo": 10}
"""Stage -> steps: time enough to stop a run, and no more."""
METHODS = ("full", "freeze", "lora", "qlora")
DIVISIONS = ("ddp", "fsdp")
Losses = Callable[[str, str], dict[int, float]]


@pytest.fixture(scope="module")
def losses_of_one(tmp_path_factory: pytest.TempPathFactory) -> Losses:
    """Return a function: the losses of a stage and method on one device, trained once."""

    @cache
    def train(stage: str, method: str) -> dict[int, float]:
        run = ranked_run(tmp_path_factory.mktemp(f"{stage}-{method}") / "run", stage, method)
        assert finish(run) == FINISHED
        return losses_of(run)

    return train


def ranked_run(folder: Path, stage: str, method: str, **fields: object) -> Path:
    num_steps = NUM_STEPS[stage]
    wanted = {"max_steps": num_steps, "save_steps": num_steps, "learning_rate": 3e-4}
    return make_ranked_run(folder, stage, method=method, **{**wanted, **fields})


def has_logged(run: Path, step: int) -> bool:
    """Return True once a step is in the metrics."""
    return (run / "metrics.jsonl").exists() and any(
        row["step"] >= step for row in lines_of(run) if "loss" in row
    )


def stop_early(run: Path) -> int:
    """Train and stop after a step. Return the step of the checkpoint."""
    program = start(run)
    wait_until(lambda: has_logged(run, 1))
    program.send_signal(signal.SIGTERM)
    assert program.wait(60) == STOPPED
    (run / "stop").unlink()
    return checkpoint_steps(run)[-1]


def kill_second_rank(run: Path, step: int) -> None:
    """Train until a step, kill rank 1, and wait until all has ended."""
    program = start(run)
    wait_until(lambda: has_logged(run, step))
    second: Any = read_words(run / "ranks" / "1.json")["pid"]
    psutil.Process(second).kill()
    assert program.wait(SECONDS_TO_NOTICE) == FAILED
    assert "Process 2 of 2, on device 1, was killed" in status_of(run)["error"]
    assert processes_in(run) == []


@pytest.mark.parametrize("division", DIVISIONS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stage", NUM_STEPS)
def test_two_devices(
    tmp_path: Path, losses_of_one: Losses, stage: str, method: str, division: str
) -> None:
    def two(name: str) -> Path:
        fields = {"num_devices": 2, "parallelism": division}
        return ranked_run(tmp_path / name, stage, method, **fields)

    rounding = OF_QUANTIZED if method == "qlora" else ROUNDING
    draws = stage == "grpo"  # each rank draws its own answers
    whole = two("whole")
    assert finish(whole) == FINISHED
    undisturbed = losses_of(whole)
    if not draws:
        assert undisturbed == pytest.approx(losses_of_one(stage, method), abs=rounding)

    run = two("stopped")
    step = stop_early(run)
    assert 0 < step < NUM_STEPS[stage] - 2
    if division == "ddp":
        alone = Path(shutil.copytree(run, tmp_path / "alone"))
        change_job(alone, num_devices=1)
        assert finish(alone) == FINISHED
        assert status_of(alone)["resumed_at"] == [step]
        if not draws:
            assert losses_of(alone) == pytest.approx(undisturbed, abs=rounding)

    kill_second_rank(run, step + 1)
    assert finish(run) == FINISHED
    assert status_of(run)["resumed_at"] == [step]
    assert losses_of(run) == pytest.approx(undisturbed, abs=rounding)
