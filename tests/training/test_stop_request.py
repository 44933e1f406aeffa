"""Stop requests: a file or a signal, before the first step, within it, and while saving."""

import importlib
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.training.checkpoints import CheckpointFolder
from core.training.contract.failures import Stopped
from core.training.record import StopRequest
from tests.builders.training_runs import STOPPED, checkpoint_steps, make_run, status_of, train

SECONDS_TO_STOP = 30


@pytest.fixture
def request_file(tmp_path: Path) -> Path:
    return tmp_path / "stop"


def test_nothing_is_requested_at_first(request_file: Path) -> None:
    stop = StopRequest(request_file)
    assert not stop.is_set
    stop.raise_if_set()


def test_a_file_is_a_request(request_file: Path) -> None:
    request_file.touch()
    assert StopRequest(request_file).is_set


def test_a_request_interrupts_while_there_is_nothing_to_save(request_file: Path) -> None:
    request_file.touch()
    with pytest.raises(Stopped):
        StopRequest(request_file).raise_if_set()


def test_a_deferred_request_interrupts_nothing(request_file: Path) -> None:
    stop = StopRequest(request_file)
    stop.defer()
    request_file.touch()
    stop.raise_if_set()
    assert stop.is_set


def test_a_signal_interrupts_once(request_file: Path) -> None:
    stop = StopRequest(request_file)
    with stop.handle_signals(on_set=lambda: None):
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
    assert stop.is_set


def test_a_request_is_reported_to_the_caller(request_file: Path) -> None:
    stop, is_reported = StopRequest(request_file), threading.Event()
    stop.defer()
    with stop.handle_signals(on_set=is_reported.set):
        request_file.touch()
        assert is_reported.wait(timeout=SECONDS_TO_STOP)


def test_the_former_signal_handlers_are_restored(request_file: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest(request_file).handle_signals(on_set=lambda: None):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


# Real trainings


def requesting_stop(run: Path) -> Callable[..., None]:
    """Return a function that takes a minute, and requests a stop at its beginning."""

    def take_long(*_: object, **__: object) -> None:
        (run / "stop").touch()
        time.sleep(2 * SECONDS_TO_STOP)

    return take_long


@pytest.mark.training
@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("core.training.data.rows", "read_rows"),
        ("core.training.model.load", "load_model"),
        ("core.training.loop.samples", "answer_all"),
    ],
)
def test_a_file_interrupts_everything_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, name: str
) -> None:
    run = make_run(tmp_path / "run", num_samples=1)
    monkeypatch.setattr(importlib.import_module(module), name, requesting_stop(run))
    began = time.monotonic()
    assert train(run) == STOPPED
    assert time.monotonic() - began < SECONDS_TO_STOP
    assert status_of(run)["state"] == "stopped"
    assert not checkpoint_steps(run)


@pytest.mark.training
def test_a_signal_while_the_model_loads_stops_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from core.training.model import load

    def take_long(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(2 * SECONDS_TO_STOP)

    monkeypatch.setattr(load, "load_model", take_long)
    run = make_run(tmp_path / "run")
    assert train(run) == STOPPED
    assert status_of(run)["state"] == "stopped"
    assert not (run / "checkpoints").exists()


@pytest.mark.training
def test_signals_while_saving_are_acknowledged_and_harmless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from core.training.loop.saver import Saver

    run = make_run(tmp_path / "run", save_steps=2)
    save = Saver.save

    def save_interrupted(saver: Saver, trainer: Any, write: Callable[[], None]) -> None:
        def write_slowly() -> None:
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGTERM)
            write()
            while status_of(run)["state"] != "stopping":
                time.sleep(0.01)

        save(saver, trainer, write_slowly)

    monkeypatch.setattr(Saver, "save", save_interrupted)
    assert train(run) == STOPPED
    checkpoint, skipped = CheckpointFolder(run / "checkpoints").newest()
    assert checkpoint is not None
    assert checkpoint.step == 3
    assert not skipped


@pytest.mark.training
def test_a_stop_within_the_first_step_saves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from core.training.loop.trainer import MonitoredTrainer

    training_step = MonitoredTrainer.training_step

    def stop_and_step(trainer: Any, *args: Any) -> Any:
        (trainer.monitor.run_files.folder / "stop").touch()
        return training_step(trainer, *args)

    monkeypatch.setattr(MonitoredTrainer, "training_step", stop_and_step)
    run = make_run(tmp_path / "run", gradient_accumulation_steps=4)
    assert train(run) == STOPPED
    assert not (run / "metrics.jsonl").exists()
    assert not checkpoint_steps(run)
