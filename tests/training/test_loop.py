"""What is watched while a model trains: whether it still learns, its memory, its time, and the wish to stop."""

import json
import math
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any

import pytest

from core.training.contract.failures import CAUSES, TrainingError, diagnose
from core.training.record import RunFiles
from tests.builders.training_runs import (
    lines_of,
    losses_of,
    make_run,
    status_of,
    train,
    train_again,
    write_rows,
)

pytestmark = [
    pytest.mark.training,
    pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU:UserWarning"),
]


# Whether it still learns


def complaint_of(*steps: tuple[float, float], **kinds: bool) -> str:
    """What the watcher says of steps: (loss, norm of the gradient)."""
    from core.training.loop.divergence import DivergenceMonitor, StepStats

    health = DivergenceMonitor(**kinds)
    for number, (loss, grad_norm) in enumerate(steps, start=1):
        health.add(StepStats(number, loss, grad_norm))
    return health.diagnosis()


WELL = (2.0, 1.0)


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([WELL] * 30, ""),
        (
            [WELL, (math.nan, 1.0), (math.nan, 1.0), (math.nan, 1.0)],
            "from step 2 on the loss is not a number",
        ),
        ([WELL, (math.inf, 1.0), (math.inf, 1.0), WELL], ""),
        (
            [WELL] + [(0.0, math.nan)] * 3,
            "from step 2 on the gradient is not a number, while the loss is 0",
        ),
        ([(2.0, 0.0)] * 5, "from step 1 on there is no gradient"),
        ([(2.0, 0.0)] * 4 + [WELL], ""),
        ([WELL] * 10 + [(30.0, 9.0)] * 10, "from step 11 on the loss is above 12; it began at 2"),
        ([WELL] * 10 + [(9.0, 9.0)] * 50, ""),
        ([(0.1, 1.0)] * 10 + [(3.0, 9.0)] * 50, ""),
    ],
)
def test_a_training_that_learns_nothing_is_told_from_one_that_does(
    steps: list[tuple[float, float]], words: str
) -> None:
    assert complaint_of(*steps).startswith(words) and bool(complaint_of(*steps)) == bool(words)


def test_steps_that_a_gradient_scaler_skips_are_normal() -> None:
    assert complaint_of(*[(2.0, math.inf)] * 17, has_scaler=True) == ""
    assert complaint_of(*[(2.0, math.inf)] * 20, has_scaler=True) != ""


def test_answers_that_are_all_equally_good_are_normal() -> None:
    assert complaint_of(*[(0.0, 0.0)] * 40, generates=True) == ""
    assert complaint_of(*[(0.0, 0.0)] * 50, generates=True) != ""


def test_weights_are_checked_without_exception() -> None:
    import torch

    from core.training.loop.divergence import are_finite

    good = [torch.ones(3), torch.tensor([-2.0], dtype=torch.bfloat16), torch.empty(0)]
    assert are_finite(good) and are_finite([])
    assert not are_finite([*good, torch.tensor([1.0, math.nan])])
    assert not are_finite([torch.tensor([-math.inf]), *good])


def ruin_weights_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a step with a much too high learning rate would."""
    from core.training.loop.monitor import MonitorCallback

    say_step = MonitorCallback._report_step

    def say_and_ruin(watch: MonitorCallback, state: Any) -> None:
        say_step(watch, state)
        if state.global_step == step and watch.trainer:
            for parameter in watch.trainer.model.parameters():
                parameter.data.fill_(math.nan)

    monkeypatch.setattr(MonitorCallback, "_report_step", say_and_ruin)


def test_a_run_that_has_diverged_ends_within_a_few_steps_and_keeps_its_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", method="full", max_steps=50, save_steps=2)
    ruin_weights_after(5, monkeypatch)
    assert train(run) == 1
    status = status_of(run)
    assert (status["state"], status["cause"]) == ("failed", "diverged") and status["step"] <= 5 + 4
    assert (
        "from step 6 on the loss is not a number. The checkpoint of step 4 is good."
        in status["error"]
    )
    assert status["checkpoint_step"] == 4 and not (run / "checkpoints" / "checkpoint-6").exists()
    assert lines_of(run)[-1]["step"] >= 7  # the plot shows how it ended


def test_a_run_that_may_diverge_goes_on_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(
        tmp_path / "run", method="full", max_steps=4, save_steps=2, stop_when_diverged=False
    )
    ruin_weights_after(3, monkeypatch)
    assert train(run) == 0
    status = status_of(run)
    assert status["warning"] == "No checkpoint is kept of step 4: its weights are no longer finite."
    assert status["checkpoint_step"] == 2


def test_a_run_without_a_gradient_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trl.trainer.sft_trainer import SFTTrainer

    compute_loss = SFTTrainer.compute_loss
    monkeypatch.setattr(
        SFTTrainer, "compute_loss", lambda *args, **kwargs: compute_loss(*args, **kwargs) * 0
    )
    run = make_run(tmp_path / "run", max_steps=50)
    assert train(run) == 1
    assert "there is no gradient" in status_of(run)["error"] and status_of(run)["step"] <= 6


# Its memory


def take_at_most(rows: int, monkeypatch: pytest.MonkeyPatch, from_step: int = 0) -> None:
    """Makes the forward pass of more rows run out of memory, as a GPU does."""
    import torch
    from trl.trainer.sft_trainer import SFTTrainer

    compute_loss = SFTTrainer.compute_loss

    def compute_or_fail(trainer: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if len(inputs["input_ids"]) > rows and trainer.state.global_step >= from_step:
            raise torch.OutOfMemoryError(
                "Tried to allocate 2.00 GiB; total capacity of 8.00 GiB of which 1.00 GiB is free"
            )
        return compute_loss(trainer, model, inputs, *args, **kwargs)

    monkeypatch.setattr(SFTTrainer, "compute_loss", compute_or_fail)


@pytest.mark.parametrize("method", ["full", "qlora"])
def test_out_of_memory_at_a_step_halves_the_batch_and_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    fields: dict[str, object] = {"method": method, "lora_dropout": 0, "learning_rate": 3e-4}
    whole, cut = make_run(tmp_path / "whole", **fields), make_run(tmp_path / "cut", **fields)
    assert train(whole) == 0
    take_at_most(2, monkeypatch, from_step=3)
    assert train(cut) == 0
    assert losses_of(cut) == pytest.approx(losses_of(whole), rel=2e-3)
    assert [line["learning_rate"] for line in lines_of(cut)] == [
        line["learning_rate"] for line in lines_of(whole)
    ]
    assert lines_of(cut)[-1]["num_tokens"] == lines_of(whole)[-1]["num_tokens"]
    status = status_of(cut)
    assert (status["per_device_train_batch_size"], status["gradient_accumulation_steps"]) == (2, 2)
    assert (
        "2.00 GiB more was needed" in status["notes"][0]
        and "From step 4 on 2 rows at once" in status["notes"][0]
    )


def test_each_step_sees_the_same_rows_after_the_batch_was_halved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from core.training.loop.trainer import MonitoredTrainer

    seen: dict[int, Counter[int]] = {}
    training_step = MonitoredTrainer.training_step

    def look_and_step(trainer: Any, model: Any, inputs: Any, *args: Any) -> Any:
        loss = training_step(trainer, model, inputs, *args)  # a pass that fails has shown nothing
        lengths = inputs["attention_mask"].sum(1).tolist()
        seen.setdefault(trainer.state.global_step, Counter()).update(lengths)
        return loss

    monkeypatch.setattr(MonitoredTrainer, "training_step", look_and_step)
    fields: dict[str, object] = {
        "max_steps": 5,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
    }
    whole, cut = make_run(tmp_path / "whole", **fields), make_run(tmp_path / "cut", **fields)
    for run in (whole, cut):
        write_rows(
            run, *lines_of(run, "data/train.jsonl")[:10]
        )  # steps of 4, 4 and 2 rows in each epoch
    assert train(whole) == 0
    expected, seen = dict(seen), {}
    take_at_most(1, monkeypatch, from_step=2)
    assert train(cut) == 0
    assert seen == expected and [rows.total() for rows in seen.values()] == [4, 4, 2, 4, 4]


def test_out_of_memory_with_one_row_fails_with_its_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_at_most(0, monkeypatch)
    run = make_run(tmp_path / "run")
    assert train(run) == 1
    status = status_of(run)
    assert (
        status["cause"] == "out_of_gpu_memory" and len(status["notes"]) == 2
    )  # 4 rows, 2 rows, 1 row
    assert status["error"].startswith(
        "Out of GPU memory in the forward pass: 2.00 GiB more was needed"
    )
    assert (status["needed_bytes"], status["free_bytes"]) == (2 * 2**30, 2**30)


def test_out_of_memory_ends_a_run_that_must_not_change_its_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_at_most(2, monkeypatch)
    run = make_run(tmp_path / "run", halve_batch_on_oom=False)
    assert train(run) == 1
    assert status_of(run)["cause"] == "out_of_gpu_memory" and not status_of(run)["notes"]


def test_a_run_that_had_to_halve_its_batch_is_resumed_with_the_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_at_most(2, monkeypatch)
    run = make_run(tmp_path / "run", save_steps=2, max_steps=4)
    assert train(run) == 0
    (run / "checkpoints" / "checkpoint-4" / "optimizer.pt").unlink()
    assert train_again(run) == 0
    status = status_of(run)
    assert (
        status["resumed_at"] == [2]
        and status["per_device_train_batch_size"] == 2
        and not status["notes"]
    )


@pytest.mark.parametrize(
    ("rows", "passes", "smaller"), [(8, 1, (4, 2)), (6, 2, (3, 4)), (5, 2, (1, 10)), (1, 8, None)]
)
def test_a_smaller_batch_has_the_same_rows_in_a_step(
    rows: int, passes: int, smaller: tuple[int, int] | None
) -> None:
    from core.training.loop.oom_recovery import smaller_batch

    assert smaller_batch(rows, passes) == smaller


# Its time


def test_every_line_tells_where_the_seconds_of_a_step_went(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", gradient_accumulation_steps=2, logging_steps=2)
    assert train(run) == 0
    names = [
        "data_seconds",
        "forward_seconds",
        "backward_seconds",
        "optimizer_seconds",
        "other_seconds",
    ]
    for line in lines_of(run):
        assert all(line[name] > 0 for name in names)
    status = status_of(run)
    assert status["seconds_per_step"] > 0 and status["last_step_time"] > status["started"]


def test_seconds_are_counted_once_whatever_the_order_in_which_marks_pass() -> None:
    from core.training.loop.stopwatch import Stopwatch

    class Queue:
        """A device that is behind: the marks up to `done` have passed."""

        moment, done = 0.0, 0.0

        def now(self) -> float:
            self.moment += 1
            return self.moment

        def has_passed(self, mark: float) -> bool:
            return mark <= self.done

        def seconds(self, start: float, end: float) -> float:
            assert end <= self.done, "read before it was there"
            return end - start

    queue = Queue()
    stopwatch = Stopwatch(queue)
    for activity in ("data", None, "forward", "backward", None):
        stopwatch.begin(activity)
    queue.done = 4
    assert stopwatch.lap(10, num_steps=2) == {
        "data_seconds": 0.5,
        "forward_seconds": 0.5,
        "backward_seconds": 0.0,
        "optimizer_seconds": 0.0,
        "other_seconds": 4.0,
    }
    queue.done = 5
    assert stopwatch.lap(1, num_steps=1)["backward_seconds"] == 1


def test_samples_are_answered_along_the_way_without_a_trace(tmp_path: Path) -> None:
    plain = make_run(tmp_path / "plain")
    shown = make_run(tmp_path / "shown", num_samples=1, sample_steps=2)
    assert (train(plain), train(shown)) == (0, 0)
    assert [line["step"] for line in lines_of(shown, "samples.jsonl")] == [0, 2, 4, 6]
    assert losses_of(shown) == losses_of(plain)


def test_what_takes_long_says_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    update = RunFiles.update

    def listen(record: RunFiles, **changes: Any) -> None:
        update(record, **changes)
        told.append(record.status.progress)

    monkeypatch.setattr(RunFiles, "update", listen)
    run = make_run(tmp_path / "run", max_steps=1, eval_dataset="data/eval.jsonl", eval_steps=1)
    assert train(run) == 0
    finished = {progress.what for progress in told if progress and progress.done == progress.total}
    assert {"Loading weights", "Tokenizing train dataset", "evaluating"} <= finished
    assert status_of(run)["progress"] is None


# The wish to stop


def asking(run: Path, ask: Callable[[], object]) -> Callable[..., None]:
    """A thing that takes a minute, in whose midst an end is asked for; and what the status said meanwhile."""

    def take_long(*_: object, **__: object) -> None:
        ask()
        for _ in range(600):
            if status_of(run)["state"] == "stopping":
                (run / "acknowledged").touch()
            time.sleep(0.1)

    return take_long


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("core.training.data.rows", "read_rows"),
        ("core.training.model.load", "_load_weights"),
        ("core.training.loop.samples", "answer_all"),
    ],
)
def test_a_stop_file_ends_whatever_goes_on_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, name: str
) -> None:
    import importlib

    run = make_run(tmp_path / "run", num_samples=1)
    owner = importlib.import_module(module)
    monkeypatch.setattr(owner, name, asking(run, (run / "stop").touch))
    began = time.monotonic()
    assert train(run) == 130
    assert status_of(run)["state"] == "stopped" and time.monotonic() - began < 30
    assert not list(run.glob("checkpoints/*"))


def test_a_wish_to_stop_is_acknowledged_while_a_checkpoint_is_written_and_a_second_one_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from core.training.loop import saver as saving

    run = make_run(tmp_path / "run", save_steps=2)
    seal = saving.Saver.save

    def interrupted(saver: Any, trainer: Any, write: Callable[[], None]) -> None:
        def write_slowly() -> None:
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGTERM)
            write()
            while status_of(run)["state"] != "stopping":
                time.sleep(0.01)

        seal(saver, trainer, write_slowly)

    monkeypatch.setattr(saving.Saver, "save", interrupted)
    assert train(run) == 130
    from core.training.checkpoints import CheckpointFolder

    checkpoint, skipped = CheckpointFolder(run / "checkpoints").newest()
    assert checkpoint is not None and checkpoint.step == 3 and not skipped


def test_a_stop_within_the_first_step_saves_nothing_because_there_is_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from core.training.loop.trainer import MonitoredTrainer

    training_step = MonitoredTrainer.training_step

    def step_and_ask(trainer: Any, *args: Any) -> Any:
        (trainer.monitor.run_files.folder / "stop").touch()
        return training_step(trainer, *args)

    monkeypatch.setattr(MonitoredTrainer, "training_step", step_and_ask)
    run = make_run(tmp_path / "run", gradient_accumulation_steps=4)
    assert train(run) == 130
    assert not losses_of_or_none(run) and not (run / "checkpoints" / "checkpoint-1").exists()


def losses_of_or_none(run: Path) -> dict[int, float]:
    return losses_of(run) if (run / "metrics.jsonl").exists() else {}


# The words of a failure


def test_every_cause_has_a_name_that_a_program_can_rely_on() -> None:
    assert all(cause.id.replace("_", "").isalpha() and cause.id.islower() for cause in CAUSES)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (MemoryError(), "out_of_memory"),
        (RuntimeError("CUDA error: out of memory"), "out_of_gpu_memory"),
        (
            RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 576 vs 470"),
            "disk_full",
        ),
        (OSError(122, "Disk quota exceeded"), "disk_full"),
        (
            OSError("libcudart.so.13: cannot open shared object file: No such file or directory"),
            "import_error",
        ),
        (
            RuntimeError("Failed to find C compiler. Please specify via CC environment variable"),
            "cannot_compile",
        ),
        (
            NotImplementedError("FlexAttention does not support backward on CPU."),
            "attention_unavailable",
        ),
        (CalledProcessError(1, ["/usr/bin/gcc", "/tmp/x/main.c", "-O3"]), "cannot_compile"),
        (
            RuntimeError("CUDA error: no kernel image is available for execution on the device"),
            "gpu_unusable",
        ),
        (TrainingError("dataset line 3: is empty.", cause="bad_row"), "bad_row"),
        (KeyError("x"), "unknown"),
    ],
)
def test_a_failure_has_a_name(error: Exception, cause: str) -> None:
    assert diagnose(error, "owner/name", "load").cause == cause


def test_the_status_tells_the_cause_beside_the_sentence(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", model="no/such-model")
    assert train(run) == 1
    status = status_of(run)
    assert status["cause"] in ("offline", "model_not_found") and "no/such-model" in status["error"]


def test_two_threads_write_one_status(tmp_path: Path) -> None:
    record = RunFiles(tmp_path)
    threads = [
        threading.Thread(
            target=lambda name: [record.update(warning=f"{name}{n}") for n in range(50)],
            args=(name,),
        )
        for name in "ab"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert json.loads((tmp_path / "status.json").read_text())["warning"] in ("a49", "b49")
