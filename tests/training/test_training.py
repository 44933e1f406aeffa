"""The training program: real trainings of the demo model, in this process; and its parts by themselves."""

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from core.training.contract.failures import TrainingError, diagnose
from core.training.contract.methods import METHODS
from core.training.data.rows import read_rows
from core.training.record import RunFiles
from tests.builders.paths import ROOT
from tests.builders.training_runs import (
    copy_model,
    lines_of,
    losses_of,
    make_run,
    status_of,
    tiny_model,
    train,
    write_rows,
)

training = pytest.mark.training
pytestmark = [
    pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU:UserWarning"),
]
MESSAGES = {
    "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
}


# The whole program


@training
@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_and_leaves_a_result_that_loads(tmp_path: Path, method: str) -> None:
    run = make_run(
        tmp_path / "run", method=method, max_steps=8, eval_dataset="data/eval.jsonl", num_samples=1
    )
    assert train(run) == 0
    losses = list(losses_of(run).values())
    assert len(losses) == 8 and all(map(math.isfinite, losses)) and min(losses[-3:]) < losses[0]
    status = status_of(run)
    assert (status["state"], status["step"], status["result"]) == ("finished", 8, "output")
    assert set(status["phase_peak_bytes"]) == {
        "load",
        "forward",
        "backward",
        "optimizer_step",
        "eval",
        "save",
    }
    assert [line["step"] for line in lines_of(run, "samples.jsonl")] == [0, 8]
    assert _answers(run, METHODS[method].trains_adapter)


@training
@pytest.mark.parametrize("method", ["full", pytest.param("lora", marks=pytest.mark.slow), "qlora"])
def test_a_stopped_run_resumes_as_if_it_had_never_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    whole, halved = (
        make_run(tmp_path / "whole", method=method),
        make_run(tmp_path / "halved", method=method),
    )
    assert train(whole) == 0
    with monkeypatch.context() as patched:
        _ask_to_stop_after(2, patched)
        assert train(halved) == 130
    assert (
        status_of(halved)["state"] == "stopped"
        and (halved / "checkpoints" / "checkpoint-3").is_dir()
    )
    assert not (halved / "output").exists()
    (halved / "stop").unlink()
    assert train(halved) == 0
    assert losses_of(halved) == losses_of(whole)
    times = [line["time"] for line in lines_of(halved)]
    assert times == sorted(times)


@pytest.mark.slow
@training
@pytest.mark.parametrize("optim", ["adamw_torch_fused", "paged_adamw_8bit"])
def test_bfloat16_adapters_are_still_bfloat16_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optim: str
) -> None:
    import torch

    from core.training.model import load

    on_cpu = load.choose_precision("auto", "qlora")
    as_on_gpu = dataclasses.replace(on_cpu, quantized_base_adapters=torch.bfloat16)
    monkeypatch.setattr(load, "choose_precision", lambda dtype, method: as_on_gpu)
    fields = {
        "method": "qlora",
        "optim": optim,
        "lora_r": 64,
        "max_steps": 4,
    }  # rank 64 has 8-bit states
    whole, halved = make_run(tmp_path / "whole", **fields), make_run(tmp_path / "halved", **fields)
    assert train(whole) == 0
    with monkeypatch.context() as patched:
        _ask_to_stop_after(2, patched)
        assert train(halved) == 130
    (halved / "stop").unlink()
    assert train(halved) == 0
    assert losses_of(halved) == losses_of(whole)


@training
@pytest.mark.parametrize("method", [pytest.param("lora", marks=pytest.mark.slow), "qlora"])
def test_evaluations_and_samples_leave_no_trace_in_the_training(
    tmp_path: Path, method: str
) -> None:
    plain = make_run(tmp_path / "plain", method=method, max_steps=4)
    watched_fields: dict[str, object] = {
        "eval_dataset": "data/eval.jsonl",
        "eval_steps": 1,
        "num_samples": 2,
    }
    watched = make_run(tmp_path / "watched", method=method, max_steps=4, **watched_fields)
    assert (train(plain), train(watched)) == (0, 0)
    assert losses_of(watched) == losses_of(plain)


TINY = {
    "vocab_size": 2048,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


@training
def test_in_a_mixture_of_experts_the_attention_gets_the_adapter(tmp_path: Path) -> None:
    from transformers import Qwen3MoeConfig

    config = Qwen3MoeConfig(**TINY, moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2)
    model = tiny_model(tmp_path / "model", config)
    assert train(run := make_run(tmp_path / "run", model=str(model), max_steps=1, lora_r=4)) == 0
    expected = 2 * 4 * ((32 + 32) + 2 * (32 + 16) + (32 + 32))  # 2 layers, rank 4, q k v o
    assert status_of(run)["num_trainable_parameters"] == expected


@training
def test_a_model_that_sdpa_cannot_compute_trains_with_the_plain_kernel(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import Gemma2Config

    model = tiny_model(tmp_path / "model", Gemma2Config(**TINY, query_pre_attn_scalar=8))
    assert train(make_run(tmp_path / "run", model=str(model), max_steps=1)) == 0
    assert "eager" in capsys.readouterr().out


@training
@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"method": "lora"}, marks=pytest.mark.slow),
        {"method": "qlora", "gradient_accumulation_steps": 2},
    ],
    ids=str,
)
def test_a_probe_goes_through_the_longest_rows_and_leaves_no_trace(
    tmp_path: Path,
    fields: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from core.training.loop import monitor as watch

    assert train(plain := make_run(tmp_path / "plain", max_steps=3, **fields)) == 0
    monkeypatch.setattr(watch, "has_limited_memory", lambda: True)
    assert train(probed := make_run(tmp_path / "probed", max_steps=3, **fields)) == 0
    assert "probe: 4 rows" in capsys.readouterr().out
    assert [(line["loss"], line["num_tokens"]) for line in lines_of(probed) if "loss" in line] == [
        (line["loss"], line["num_tokens"]) for line in lines_of(plain) if "loss" in line
    ]


def test_the_longest_rows_are_found_in_any_order() -> None:
    from datasets import Dataset

    from core.training.loop.probe import longest_rows

    lengths = [3, 9, 1, 9, 7]
    rows = Dataset.from_list([{"input_ids": list(range(length))} for length in lengths]).shuffle(
        seed=1
    )
    assert sorted(len(rows[index]["input_ids"]) for index in longest_rows(rows, 3)) == [7, 9, 9]


def test_a_stop_during_an_evaluation_ends_it_and_saves_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", eval_dataset="data/eval.jsonl", eval_steps=2)

    update = RunFiles.update

    def update_and_ask(run_files: RunFiles, **changes: Any) -> None:
        update(run_files, **changes)
        if changes.get("phase") == "eval" and run_files.status.step > 0:
            (run_files.folder / "stop").touch()

    monkeypatch.setattr(RunFiles, "update", update_and_ask)
    assert train(run) == 130
    assert status_of(run)["state"] == "stopped" and (run / "checkpoints" / "checkpoint-2").is_dir()
    assert not any("eval_loss" in line for line in lines_of(run))


@training
def test_a_run_that_died_after_its_last_step_resumes_to_its_result_without_another_step(
    tmp_path: Path,
) -> None:
    run = make_run(tmp_path / "run", max_steps=3)
    assert train(run) == 0
    before = (run / "output" / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(run / "output")
    assert train(run) == 0
    assert (run / "output" / "adapter_model.safetensors").read_bytes() == before
    assert list(losses_of(run)) == [1, 2, 3] and status_of(run)["step"] == 3


@training
def test_a_finished_run_started_once_more_stays_as_it_is(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", max_steps=2)
    assert train(run) == 0
    before = status_of(run)
    assert train(run) == 0 and status_of(run) == before


@training
def test_a_loss_that_is_not_a_number_is_shown_and_the_file_stays_json(tmp_path: Path) -> None:
    fields: dict[str, object] = {
        "method": "full",
        "optim": "sgd",
        "max_grad_norm": 0,
        "max_steps": 4,
    }
    run = make_run(tmp_path / "run", stop_when_diverged=False, **fields)
    job = json.loads((run / "job.json").read_text())
    (run / "job.json").write_text(json.dumps(job | {"learning_rate": 1e30}))
    assert train(run) == 0
    last = [line for line in lines_of(run) if "learning_rate" in line][-1]
    assert "loss" in last["nonfinite"] and "loss" not in last


@training
def test_a_signal_while_the_model_is_loading_ends_the_program_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from core.training.model import load

    def take_long(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    monkeypatch.setattr(load, "_load_weights", take_long)
    run = make_run(tmp_path / "run")
    assert train(run) == 130
    assert status_of(run)["state"] == "stopped" and not (run / "checkpoints").exists()


@training
@pytest.mark.parametrize(
    ("row", "lines"),
    [
        ({"prompt": "two and two is", "completion": " four"}, True),
        ({"instruction": "Greet.", "input": "Ann", "output": "Hello Ann"}, True),
        ({"question": "Who?", "answer": "Me."}, True),
        ({"text": "It is what it is."}, False),
    ],
    ids=["prompt", "instruction", "question", "text"],
)
def test_every_kind_of_row_can_be_trained_on(
    tmp_path: Path, row: dict[str, str], lines: bool
) -> None:
    run = make_run(tmp_path / "run", max_steps=2, num_samples=1)
    write_rows(run, *[row] * 8)
    assert train(run) == 0
    assert len(losses_of(run)) == 2 and (run / "samples.jsonl").exists() == lines


@training
def test_packed_rows_train(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", packing=True, max_steps=2)
    assert train(run) == 0
    assert lines_of(run)[-1]["num_tokens"] > 2 * 4 * 100


@training
def test_a_template_without_marks_is_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    model = copy_model(tmp_path / "model")
    template = model / "chat_template.jinja"
    text = template.read_text().replace("{%- generation %}", "").replace("{%- endgeneration %}", "")
    template.write_text(text)
    (model / "model.safetensors").unlink()
    run = make_run(tmp_path / "run", model=str(model))
    assert train(run) == 1
    assert "switch assistant_only_loss off" in status_of(run)["error"]


@training
def test_a_model_without_a_template_gets_one_that_is_saved_with_the_result(tmp_path: Path) -> None:
    model = copy_model(tmp_path / "model")
    (model / "chat_template.jinja").unlink()
    run = make_run(tmp_path / "run", model=str(model), max_steps=1)
    assert train(run) == 0
    assert "{%- generation %}" in (run / "output" / "chat_template.jinja").read_text()


@training
def test_rows_whose_answers_are_all_cut_off_are_named_as_the_cause(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", max_length=8)
    assert train(run) == 1
    assert "max_length 8" in status_of(run)["error"]


@training
def test_the_copied_program_runs_by_itself_and_stops_on_a_signal(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", max_steps=100_000)
    shutil.copytree(
        ROOT / "core" / "training", run / "training", ignore=shutil.ignore_patterns("__pycache__")
    )
    with (run / "log.txt").open("wb") as log:
        program = subprocess.Popen(
            [sys.executable, "-m", "training", "job.json"], cwd=run, stdout=log, stderr=log
        )
    while program.poll() is None and not (run / "metrics.jsonl").exists():
        time.sleep(0.1)
    program.terminate()
    assert program.wait(timeout=60) == 130, (run / "log.txt").read_text()
    status = status_of(run)
    assert (
        status["state"] == "stopped"
        and (run / "checkpoints" / f"checkpoint-{status['step']}").is_dir()
    )


# Jobs that cannot run


def test_a_job_without_a_field_is_refused_with_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run")
    job = json.loads((run / "job.json").read_text())
    del job["dataset"]
    (run / "job.json").write_text(json.dumps(job))
    assert train(run) == 2
    assert "job.json: field dataset is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("chosen", "expandable"),
    [({}, True), ({"PYTORCH_ALLOC_CONF": "a:b"}, False), ({"PYTORCH_CUDA_ALLOC_CONF": ""}, False)],
)
def test_the_allocator_is_set_up_unless_a_person_has_done_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: dict[str, str], expandable: bool
) -> None:
    from core.training import __main__ as program

    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(program, "train", lambda job, record: None)
    assert train(make_run(tmp_path / "run")) == 0
    assert (os.environ.get("PYTORCH_CUDA_ALLOC_CONF") == "expandable_segments:True") == expandable


def test_a_job_file_that_is_not_json_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "job.json").write_text("{")
    assert train(tmp_path) == 2
    assert capsys.readouterr().err.startswith("job.json: is not JSON")


def test_a_stop_file_at_the_start_means_stop(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "stop").touch()
    assert train(run) == 130
    assert status_of(run)["state"] == "stopped"


@training
def test_a_bad_row_is_named_by_its_line(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    write_rows(run, MESSAGES, "", MESSAGES, '{"messages": [')
    assert train(run) == 1
    status = status_of(run)
    assert status["state"] == "failed" and status["error"].startswith(
        "dataset line 4: not JSON at column"
    )


# The rows


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        (MESSAGES, ["messages", "tools"]),
        ({"prompt": "a", "completion": "b"}, ["prompt", "completion", "tools"]),
        ({"instruction": "a", "output": "b"}, ["prompt", "completion"]),
        ({"question": "a", "answer": "b", "system": "c"}, ["prompt", "completion"]),
        ({"text": "a"}, ["text"]),
    ],
)
def test_each_way_of_writing_rows_becomes_columns_of_trl(
    tmp_path: Path, row: object, columns: list[str]
) -> None:
    write_rows(make_run(tmp_path / "run"), row, row)
    rows = read_rows(tmp_path / "run", "data/train.jsonl", "", 0.0, 0)
    assert rows.train.column_names == columns and len(rows.train) == 2 and rows.eval is None


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": "a"}, "another format than the first row"),
        ({"messages": []}, "has no messages"),
        ({"messages": [{"role": "user", "content": "a"}]}, "no assistant message"),
        ({"messages": [{"role": "user"}]}, "content: is null, not text"),
        ({"messages": [{"role": "boss", "content": "a"}]}, "'boss' is not a role"),
        ({"title": "a"}, "no known columns among title"),
        ([1], "must be an object, not a list"),
    ],
)
def test_a_row_that_cannot_be_used_is_refused_by_line(
    tmp_path: Path, row: object, words: str
) -> None:
    write_rows(make_run(tmp_path / "run"), MESSAGES, row)
    with pytest.raises(TrainingError, match=f"dataset line 2: .*{words}"):
        read_rows(tmp_path / "run", "data/train.jsonl", "", 0.0, 0)


@pytest.mark.parametrize(("count", "held_out"), [(19, 0), (20, 1), (100, 5)])
def test_a_share_of_the_rows_is_held_out_if_there_are_enough(
    tmp_path: Path, count: int, held_out: int
) -> None:
    write_rows(make_run(tmp_path / "run"), *[{"text": str(number)} for number in range(count)])
    rows = read_rows(tmp_path / "run", "data/train.jsonl", "", 0.05, seed=1)
    assert len(rows.eval or ()) == held_out
    assert sorted(
        int(row["text"]) for part in (rows.train, rows.eval or ()) for row in part
    ) == list(range(count))


def test_messages_keep_exactly_the_keys_they_came_with(tmp_path: Path) -> None:
    called = {
        "role": "assistant",
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}],
    }
    row = {
        "messages": [{"role": "user", "content": "hi"}, called],
        "tools": [{"type": "function", "function": {"name": "f"}}],
    }
    write_rows(make_run(tmp_path / "run"), row, MESSAGES)
    rows = read_rows(tmp_path / "run", "data/train.jsonl", "", 0.0, 0)
    assert [found["messages"] for found in rows.train] == [row["messages"], MESSAGES["messages"]]


# The record


def test_a_rewind_drops_torn_and_later_lines_and_keeps_the_clock_going(tmp_path: Path) -> None:
    lines = [
        {"step": 2, "time": 50.0, "num_tokens": 9},
        {"step": 2, "time": 51.0, "eval_loss": 1.0},
        {"step": 3, "time": 60.0, "num_tokens": 12},
    ]
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4, "ti'
    )
    record = RunFiles(tmp_path)
    assert record.truncate_after(2, has_all_steps=False) == 9
    assert lines_of(tmp_path) == lines[:2]
    assert record.seconds() >= 51.0


def test_an_answer_with_unusual_line_ends_survives_a_rewind(tmp_path: Path) -> None:
    record = RunFiles(tmp_path)
    record.append_sample(0, "say it", "a\u2028b\x85c\nd")
    record.truncate()
    assert lines_of(tmp_path, "samples.jsonl")[0]["answer"] == "a\u2028b\x85c\nd"


def test_a_status_is_written_at_once_for_news_and_seldom_for_steps(tmp_path: Path) -> None:
    record = RunFiles(tmp_path)
    record.update(step=1)
    assert status_of(tmp_path)["step"] == 0
    record.update(phase="train")
    assert status_of(tmp_path)["step"] == 1


def test_numbers_that_json_does_not_have_are_named(tmp_path: Path) -> None:
    RunFiles(tmp_path).append_metrics(
        1, 0.5, {"loss": math.nan, "grad_norm": math.inf, "learning_rate": 0.1}
    )
    line = lines_of(tmp_path)[0]
    assert line["nonfinite"] == ["loss", "grad_norm"] and set(line) == {
        "step",
        "epoch",
        "time",
        "learning_rate",
        "nonfinite",
    }


@training
def test_paged_states_are_paged_again_after_a_resume() -> None:
    import torch
    from bitsandbytes.optim import PagedAdamW8bit

    from core.training.loop.trainer import paged_state_loading

    class Paged(PagedAdamW8bit):
        """Marks what on a GPU would be a paged buffer."""

        def get_state_buffer(self, p: Any, dtype: Any = torch.float32) -> Any:
            buffer = torch.zeros_like(p, dtype=dtype)
            buffer.is_in_pages = True
            return buffer

    def optimizer() -> Any:
        torch.manual_seed(0)
        weights = [
            torch.nn.Parameter(torch.randn(shape)) for shape in ((64, 128), (4,))
        ]  # 8-bit states, 32-bit ones
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        return Paged(weights, lr=0.1)

    first, second = optimizer(), optimizer()
    first.step()
    with paged_state_loading(second):
        second.load_state_dict(first.state_dict())
    assert [set(state) for state in second.state.values()] == [
        set(state) for state in first.state.values()
    ]
    for old, new in zip(first.state.values(), second.state.values(), strict=True):
        for name in ("state1", "state2"):
            assert (
                new[name].is_in_pages
                and new[name].dtype == old[name].dtype
                and new[name].equal(old[name])
            )
    assert "load_state_dict" not in vars(second)


# ModelPrecision and memory, as on GPUs that are not here


@pytest.mark.parametrize(
    ("gpu", "method", "dtype", "weights", "autocast", "adapters"),
    [
        ("none", "full", "auto", "float32", None, "float32"),
        ("none", "qlora", "auto", "float32", None, "float32"),
        ("with bf16", "full", "auto", "bfloat16", "bfloat16", "bfloat16"),
        ("with bf16", "full", "float32", "float32", "bfloat16", "bfloat16"),
        ("with bf16", "qlora", "auto", "bfloat16", "bfloat16", "bfloat16"),
        ("without bf16", "full", "auto", "float32", "float16", "float32"),
        ("without bf16", "lora", "auto", "float16", "float16", "float32"),
        ("without bf16", "qlora", "auto", "float16", "float16", "float32"),
    ],
)
@training
def test_the_precision_follows_the_device(
    monkeypatch: pytest.MonkeyPatch,
    gpu: str,
    method: str,
    dtype: str,
    weights: str,
    autocast: str,
    adapters: str,
) -> None:
    import torch

    from core.training.model.load import ModelPrecision, choose_precision

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu != "none")
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: gpu == "with bf16"
    )
    wanted = ModelPrecision(
        getattr(torch, weights), autocast and getattr(torch, autocast), getattr(torch, adapters)
    )
    assert choose_precision(dtype, method) == wanted


@training
@pytest.mark.parametrize("method", ["full", "freeze"])
@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_weights_that_train_in_float16_are_refused_on_every_gpu(
    monkeypatch: pytest.MonkeyPatch, method: str, has_bfloat16: bool
) -> None:
    import torch

    from core.training.model.load import choose_precision

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bfloat16)
    with pytest.raises(TrainingError, match="float16"):
        choose_precision("float16", method)
    assert choose_precision("float16", "lora").weights == torch.float16


class FakeAllocator:
    """torch.cuda's counters, moved by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import torch

        self.live = self.peak = 0
        for name, function in {
            "get_device_name": lambda: "GPU",
            "mem_get_info": lambda: (900, 1000),
            "memory_allocated": lambda: self.live,
            "memory_reserved": lambda: self.live,
            "max_memory_allocated": lambda: self.peak,
            "max_memory_reserved": lambda: self.peak,
            "empty_cache": lambda: None,
            "reset_peak_memory_stats": lambda: self.hold(self.live, peak=0),
        }.items():
            monkeypatch.setattr(torch.cuda, name, function)

    def hold(self, live: int, peak: int | None = None) -> None:
        self.live, self.peak = live, max(live, self.peak if peak is None else peak)


@training
def test_the_highest_memory_survives_the_resets_between_phases(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from core.training.loop.meter import CudaGauge, MemoryMeter

    allocator = FakeAllocator(monkeypatch)
    meter = MemoryMeter(CudaGauge(), {"forward": 1, "backward": 1})
    for phase, highest in (("forward", 100), ("backward", 60), ("forward", 80)):
        meter.enter(phase)
        allocator.hold(highest)
        allocator.hold(40)
    meter.leave()
    assert meter.peaks == {"forward": 100, "backward": 60}
    assert meter.gauge.highest()["peak_allocated_bytes"] == 100


@training
def test_memory_of_the_samples_does_not_count_as_the_trainings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from core.training.loop.meter import CudaGauge, MemoryMeter

    allocator = FakeAllocator(monkeypatch)
    meter = MemoryMeter(CudaGauge(), {})
    allocator.hold(50)
    with meter.unmeasured():
        allocator.hold(500)
        allocator.hold(50)
    readings = meter.gauge.readings()
    assert readings["memory_peak_bytes"] == 50 and readings["device_used_bytes"] == 100


# The words of a failure


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


class GatedRepoError(OSError):
    """Named as huggingface_hub's."""


OUT_OF_MEMORY = """\
CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 14.56 GiB of which 1.20 GiB is free.
Including non-PyTorch memory, this process has 13.36 GiB memory in use."""


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            OutOfMemoryError(OUT_OF_MEMORY),
            "Out of GPU memory in the backward pass: 2.00 GiB more was needed, 1.20 GiB of 14.56 GiB was free.",
        ),
        (TrainingError("dataset line 3: is empty."), "dataset line 3: is empty."),
        (
            OSError(28, "No space left on device"),
            "The disk is full: nothing more could be written in the backward pass.",
        ),
        (
            ModuleNotFoundError("No module named 'nope.sub'"),
            "A package is missing where the training runs: pip install nope.",
        ),
        (ValueError("first\nsecond"), "ValueError: first"),
    ],
)
def test_a_failure_is_told_in_one_sentence(error: Exception, sentence: str) -> None:
    assert diagnose(error, "owner/name", "backward").sentence == sentence


def test_a_failure_is_known_by_what_it_was_raised_from() -> None:
    outer = OSError("You are trying to access a gated repo.")
    outer.__cause__ = GatedRepoError("403")
    assert diagnose(outer, "owner/name", "load").sentence.startswith(
        "owner/name is gated: accept its licence at"
    )


def _ask_to_stop_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the file `stop` appear once a step has been logged; it is seen at the end of the next."""
    append = RunFiles.append_metrics

    def append_and_ask(record: RunFiles, logged: int, *args: Any) -> None:
        append(record, logged, *args)
        if logged == step:
            (record.folder / "stop").touch()

    monkeypatch.setattr(RunFiles, "append_metrics", append_and_ask)


def _answers(run: Path, is_adapter: bool) -> bool:
    """True if the result loads with the library that a user would take and gives finite logits."""
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    kind = AutoPeftModelForCausalLM if is_adapter else AutoModelForCausalLM
    tokenizer = AutoTokenizer.from_pretrained(run / "output")
    model = kind.from_pretrained(run / "output")
    return bool(model(**tokenizer("hello", return_tensors="pt")).logits.isfinite().all())
