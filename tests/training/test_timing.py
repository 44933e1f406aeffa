"""Test the timing of a training: seconds per activity, progress, samples during training."""

from pathlib import Path
from typing import Any

import pytest

from core.training.record import RunFiles
from tests.builders.training_runs import (
    FINISHED,
    lines_of,
    losses_of,
    make_run,
    status_of,
    train,
    values_of,
)

pytestmark = pytest.mark.training
SECONDS = [
    "data_seconds",
    "forward_seconds",
    "backward_seconds",
    "optimizer_seconds",
    "other_seconds",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run that logs every second step."""
    folder = tmp_path_factory.mktemp("timed")
    run = make_run(folder / "run", gradient_accumulation_steps=2, logging_steps=2)
    assert train(run) == FINISHED
    return run


@pytest.mark.parametrize("name", SECONDS)
def test_every_line_has_the_seconds_of_each_activity(run: Path, name: str) -> None:
    assert min(values_of(run, name)) > 0


def test_the_status_has_the_pace_and_the_last_step(run: Path) -> None:
    status = status_of(run)
    assert status["seconds_per_step"] > 0
    assert status["last_step_time"] > status["started"]


class QueueClock:
    """Clock of a device that is behind: only marks up to `done` have passed."""

    def __init__(self) -> None:
        self.moment = 0.0
        self.done = 0.0

    def now(self) -> float:
        self.moment += 1
        return self.moment

    def has_passed(self, mark: float) -> bool:
        return mark <= self.done

    def seconds(self, start: float, end: float) -> float:
        assert end <= self.done, "read before it has passed"
        return end - start


def test_seconds_are_counted_once_their_marks_have_passed() -> None:
    from core.training.loop.stopwatch import Stopwatch

    clock = QueueClock()
    stopwatch = Stopwatch(clock)
    for activity in ("data", None, "forward", "backward", None):
        stopwatch.begin(activity)
    clock.done = 4  # the end of the backward pass has not passed
    assert stopwatch.lap(10, num_steps=2) == {
        "data_seconds": 0.5,
        "forward_seconds": 0.5,
        "backward_seconds": 0.0,
        "optimizer_seconds": 0.0,
        "other_seconds": 4.0,
    }
    clock.done = 5
    assert stopwatch.lap(1, num_steps=1)["backward_seconds"] == 1


def test_samples_on_the_way_do_not_change_the_training(tmp_path: Path) -> None:
    plain = make_run(tmp_path / "plain")
    sampled = make_run(tmp_path / "sampled", num_samples=1, sample_steps=2)
    assert (train(plain), train(sampled)) == (FINISHED, FINISHED)
    assert [line["step"] for line in lines_of(sampled, "samples.jsonl")] == [0, 2, 4, 6]
    assert losses_of(sampled) == losses_of(plain)


def test_long_operations_report_their_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished: set[str] = set()
    update = RunFiles.update

    def update_and_look(run_files: RunFiles, **changes: Any) -> None:
        update(run_files, **changes)
        progress = run_files.status.progress
        if progress and progress.done == progress.total:
            finished.add(progress.what)

    monkeypatch.setattr(RunFiles, "update", update_and_look)
    run = make_run(tmp_path / "run", max_steps=1, eval_dataset="data/eval.jsonl", eval_steps=1)
    assert train(run) == FINISHED
    assert {"Loading weights", "Tokenizing the rows of dataset", "evaluating"} <= finished
    assert status_of(run)["progress"] is None
