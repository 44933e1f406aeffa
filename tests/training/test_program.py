"""Whole trainings of the demo model in this process: learning, results, resuming, stopping."""

import math
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from core.training.contract.methods import METHODS
from core.training.record import RunFiles
from tests.builders.paths import ROOT
from tests.builders.training_runs import (
    FINISHED,
    STOPPED,
    TINY_CONFIG,
    change_job,
    checkpoint_steps,
    copy_model,
    error_of,
    lines_of,
    losses_of,
    make_run,
    result_is_usable,
    status_of,
    stop_after,
    tiny_model,
    train,
    train_in_two_parts,
    training_lines,
    values_of,
    write_rows,
)

pytestmark = [
    pytest.mark.training,
    pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU:UserWarning"),
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning"),
]
NUM_STEPS = 8
MEASURED_PHASES = {"load", "forward", "backward", "optimizer_step", "eval", "save"}


@pytest.fixture(scope="module", params=METHODS)
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run with each method."""
    folder = tmp_path_factory.mktemp(request.param)
    fields = {"max_steps": NUM_STEPS, "eval_dataset": "data/eval.jsonl", "num_samples": 1}
    run = make_run(folder / "run", method=request.param, **fields)
    assert train(run) == FINISHED
    return run


# Learning


def test_every_method_learns(finished: Path) -> None:
    losses = list(losses_of(finished).values())
    assert min(losses[-3:]) < losses[0]


def test_every_step_has_a_finite_loss(finished: Path) -> None:
    assert [math.isfinite(loss) for loss in losses_of(finished).values()] == [True] * NUM_STEPS


def test_a_finished_run_says_so(finished: Path) -> None:
    status = status_of(finished)
    ending = (status["state"], status["step"], status["result"])
    assert ending == ("finished", NUM_STEPS, "output")


def test_every_phase_is_measured(finished: Path) -> None:
    assert set(status_of(finished)["phase_peak_bytes"]) == MEASURED_PHASES


def test_samples_are_answered_before_and_after(finished: Path) -> None:
    assert [line["step"] for line in lines_of(finished, "samples.jsonl")] == [0, NUM_STEPS]


def test_every_result_loads_and_answers(finished: Path) -> None:
    assert result_is_usable(finished)


@pytest.mark.parametrize(
    ("row", "has_samples"),
    [
        ({"prompt": "two and two is", "completion": " four"}, True),
        ({"instruction": "Greet.", "input": "Ann", "output": "Hello Ann"}, True),
        ({"question": "Who?", "answer": "Me."}, True),
        ({"text": "It is what it is."}, False),
    ],
    ids=["prompt", "instruction", "question", "text"],
)
def test_every_format_of_rows_trains(
    tmp_path: Path, row: dict[str, str], has_samples: bool
) -> None:
    run = make_run(tmp_path / "run", max_steps=2, num_samples=1)
    write_rows(run, *[row] * 8)
    assert train(run) == FINISHED
    assert len(losses_of(run)) == 2
    assert (run / "samples.jsonl").exists() == has_samples


def test_packed_rows_train(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", packing=True, max_steps=2)
    assert train(run) == FINISHED
    two_steps_of_four_full_rows = 2 * 4 * 100
    assert lines_of(run)[-1]["num_tokens"] > two_steps_of_four_full_rows


def test_experts_train_adapters_of_the_attention_only(tmp_path: Path) -> None:
    from transformers import Qwen3MoeConfig

    experts = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
    model = tiny_model(tmp_path / "model", Qwen3MoeConfig(**TINY_CONFIG, **experts))
    run = make_run(tmp_path / "run", model=str(model), max_steps=1, lora_r=4)
    assert train(run) == FINISHED
    hidden, keys, layers, rank = 32, 16, 2, 4
    query_and_output, key_and_value = 2 * (hidden + hidden), 2 * (hidden + keys)
    expected = layers * rank * (query_and_output + key_and_value)
    assert status_of(run)["num_trainable_parameters"] == expected


def test_a_model_that_sdpa_cannot_compute_trains_with_eager(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import Gemma2Config

    config = Gemma2Config(**TINY_CONFIG, query_pre_attn_scalar=8)
    model = tiny_model(tmp_path / "model", config)
    assert train(make_run(tmp_path / "run", model=str(model), max_steps=1)) == FINISHED
    assert "eager" in capsys.readouterr().out


def test_a_loss_that_is_no_number_is_named_in_nonfinite(tmp_path: Path) -> None:
    fields = {"method": "full", "optim": "sgd", "max_grad_norm": 0, "max_steps": 4}
    run = make_run(tmp_path / "run", stop_when_diverged=False, **fields)
    change_job(run, learning_rate=1e30)
    assert train(run) == FINISHED
    last = [line for line in lines_of(run) if "learning_rate" in line][-1]
    assert "loss" in last["nonfinite"]
    assert "loss" not in last


# Chat templates


def test_a_template_that_ends_no_answer_is_refused_before_loading(tmp_path: Path) -> None:
    model = copy_model(tmp_path / "model")
    template = "{%- for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{%- endfor %}"
    (model / "chat_template.jinja").write_text(template)
    (model / "model.safetensors").unlink()
    error = error_of(make_run(tmp_path / "run", model=str(model)))
    assert error.startswith("dataset line 1: ")
    assert "no end-of-turn token" in error


def test_a_default_template_is_saved_with_the_result(tmp_path: Path) -> None:
    model = copy_model(tmp_path / "model")
    (model / "chat_template.jinja").unlink()
    run = make_run(tmp_path / "run", model=str(model), max_steps=1)
    assert train(run) == FINISHED
    assert "{%- generation %}" in (run / "output" / "chat_template.jinja").read_text()


# Evaluation, samples and the probe change nothing


@pytest.mark.parametrize("method", [pytest.param("lora", marks=pytest.mark.slow), "qlora"])
def test_evaluations_and_samples_do_not_change_the_training(tmp_path: Path, method: str) -> None:
    plain = make_run(tmp_path / "plain", method=method, max_steps=4)
    extras = {"eval_dataset": "data/eval.jsonl", "eval_steps": 1, "num_samples": 2}
    evaluated = make_run(tmp_path / "evaluated", method=method, max_steps=4, **extras)
    assert (train(plain), train(evaluated)) == (FINISHED, FINISHED)
    assert losses_of(evaluated) == losses_of(plain)


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"method": "lora"}, marks=pytest.mark.slow),
        {"method": "qlora", "gradient_accumulation_steps": 2},
    ],
    ids=str,
)
def test_the_probe_does_not_change_the_training(
    tmp_path: Path,
    fields: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from core.training.loop import monitor

    plain = make_run(tmp_path / "plain", max_steps=3, **fields)
    probed = make_run(tmp_path / "probed", max_steps=3, **fields)
    assert train(plain) == FINISHED
    monkeypatch.setattr(monitor, "has_limited_memory", lambda: True)
    assert train(probed) == FINISHED
    assert "probe: 4 rows" in capsys.readouterr().out
    for name in ("loss", "num_tokens"):
        assert values_of(probed, name) == values_of(plain, name)


# Stopping and resuming


@pytest.mark.parametrize("method", ["full", pytest.param("lora", marks=pytest.mark.slow), "qlora"])
def test_a_resumed_run_has_the_losses_of_one_never_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    whole = make_run(tmp_path / "whole", method=method)
    halved = make_run(tmp_path / "halved", method=method)
    assert train(whole) == FINISHED
    train_in_two_parts(halved, 2, monkeypatch)
    assert losses_of(halved) == losses_of(whole)
    times = values_of(halved, "time")
    assert times == sorted(times)


def test_a_stopped_run_has_a_checkpoint_and_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run")
    stop_after(2, monkeypatch)
    assert train(run) == STOPPED
    assert status_of(run)["state"] == "stopped"
    assert checkpoint_steps(run) == [3]
    assert not (run / "output").exists()


@pytest.mark.slow
@pytest.mark.parametrize("optim", ["adamw_torch_fused", "paged_adamw_8bit"])
def test_bfloat16_adapters_resume_in_bfloat16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optim: str
) -> None:
    import dataclasses

    import torch

    from core.training.model import load

    on_cpu = load.choose_precision("auto", "qlora")
    on_gpu = dataclasses.replace(on_cpu, quantized_base_adapters=torch.bfloat16)
    monkeypatch.setattr(load, "choose_precision", lambda dtype, method: on_gpu)
    rank_with_8bit_states = 64
    fields = {"method": "qlora", "optim": optim, "lora_r": rank_with_8bit_states, "max_steps": 4}
    whole, halved = make_run(tmp_path / "whole", **fields), make_run(tmp_path / "halved", **fields)
    assert train(whole) == FINISHED
    train_in_two_parts(halved, 2, monkeypatch)
    assert losses_of(halved) == losses_of(whole)


def test_a_stop_during_an_evaluation_saves_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", eval_dataset="data/eval.jsonl", eval_steps=2)
    update = RunFiles.update

    def update_and_stop(run_files: RunFiles, **changes: Any) -> None:
        update(run_files, **changes)
        if changes.get("phase") == "eval" and run_files.status.step > 0:
            (run_files.folder / "stop").touch()

    monkeypatch.setattr(RunFiles, "update", update_and_stop)
    assert train(run) == STOPPED
    assert status_of(run)["state"] == "stopped"
    assert checkpoint_steps(run) == [2]
    assert training_lines(run) == lines_of(run), "an evaluation that was cut short has no metrics"


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run of three steps."""
    run = make_run(tmp_path_factory.mktemp("ended") / "run", max_steps=3)
    assert train(run) == FINISHED
    return run


def test_a_run_without_its_result_writes_it_without_a_step(ended: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(ended, tmp_path / "run"))
    weights = run / "output" / "adapter_model.safetensors"
    before = weights.read_bytes()
    shutil.rmtree(run / "output")
    assert train(run) == FINISHED
    assert weights.read_bytes() == before
    assert list(losses_of(run)) == [1, 2, 3]
    assert status_of(run)["step"] == 3


def test_a_finished_run_that_is_started_again_does_nothing(ended: Path) -> None:
    before = status_of(ended)
    assert train(ended) == FINISHED
    assert status_of(ended) == before


def test_the_copied_program_runs_alone_and_stops_on_a_signal(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", max_steps=100_000)
    without_cache = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "core" / "training", run / "training", ignore=without_cache)
    command = [sys.executable, "-m", "training", "job.json"]
    with (run / "log.txt").open("wb") as log:
        program = subprocess.Popen(command, cwd=run, stdout=log, stderr=log)
    while program.poll() is None and not (run / "metrics.jsonl").exists():
        time.sleep(0.1)
    program.terminate()
    assert program.wait(timeout=60) == STOPPED, (run / "log.txt").read_text()
    status = status_of(run)
    assert status["state"] == "stopped"
    assert checkpoint_steps(run) == [status["step"]]
