"""Make run folders for tests of the training program: the demo model, a few rows and steps."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from core.job import JobSpec
from core.training.__main__ import main
from core.training.contract.job import Job
from core.training.contract.stages import STAGES
from core.training.record import RunFiles
from tests.builders.paths import DEMO

NUM_ROWS = 48
NUM_EVAL_ROWS = 4
STAGE_FILES: Mapping[str, str] = {
    "preference": "preference.jsonl",
    "unpaired preference": "preference.jsonl",
    "prompt-only": "prompts.jsonl",
}
"""Dataset type -> file of the demo. All other types are in data.jsonl."""
TINY_CONFIG = {
    "vocab_size": 2048,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
FINISHED, FAILED, UNUSABLE, STOPPED = 0, 1, 2, 130
"""Exit codes of the program."""


def make_run(folder: Path, **fields: object) -> Path:
    """Make a run folder as the app does, without a copy of the program."""
    (folder / "data").mkdir(parents=True)
    rows = (DEMO / "data.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    train_rows, eval_rows = rows[:NUM_ROWS], rows[NUM_ROWS : NUM_ROWS + NUM_EVAL_ROWS]
    (folder / "data" / "train.jsonl").write_text("".join(train_rows), encoding="utf-8")
    (folder / "data" / "eval.jsonl").write_text("".join(eval_rows), encoding="utf-8")
    quick: dict[str, object] = {
        "model": str(DEMO / "model"),
        "dataset": "data/train.jsonl",
        "eval_fraction": 0,
        "max_length": 128,
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "learning_rate": 3e-3,
        "lora_dropout": 0.1,
        "num_samples": 0,
    }
    (folder / "job.json").write_text(JobSpec.parse(quick | fields).to_json(), encoding="utf-8")
    return folder


def make_stage_run(folder: Path, stage: str, **fields: object) -> Path:
    """Make a run folder with the demo's rows for a stage, and a job of three steps."""
    quick: dict[str, object] = {
        "stage": stage,
        "max_steps": 3,
        "max_length": 256,
        "lora_dropout": 0.0,
        "optim": "adamw_torch_fused",
        "learning_rate": 1e-3,
        "num_generations": 4,
        "max_completion_length": 24,
        "temperature": 3.0,  # at 1 all answers of the demo are alike
        "reward_functions": "length,exact_match",
    }
    run = make_run(folder, **quick | fields)
    name = STAGE_FILES.get(STAGES[stage].dataset_types[0])
    if name:
        write_rows(run, *(DEMO / name).read_text(encoding="utf-8").splitlines()[:NUM_ROWS])
    return run


def job_of(**fields: Any) -> Job:
    """Return a job of the demo model with these settings."""
    return Job(model=str(DEMO / "model"), dataset="data/train.jsonl", **fields)


def change_job(run: Path, **fields: object) -> None:
    """Edit job.json by hand, past the checks of JobSpec."""
    job = json.loads((run / "job.json").read_text(encoding="utf-8"))
    (run / "job.json").write_text(json.dumps(job | fields), encoding="utf-8")


def write_rows(folder: Path, *rows: object) -> None:
    """Replace the training rows of a run folder."""
    _write_rows(folder / "data" / "train.jsonl", rows)


def write_eval_rows(folder: Path, *rows: object) -> None:
    """Replace the evaluation rows of a run folder."""
    _write_rows(folder / "data" / "eval.jsonl", rows)


def _write_rows(path: Path, rows: Sequence[object]) -> None:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def train(folder: Path) -> int:
    """Run the program in this process; return its exit code."""
    return main(["job.json"], folder=folder)


def resume(folder: Path) -> int:
    """Resume a run that was stopped by its file `stop`."""
    (folder / "stop").unlink()
    return train(folder)


def train_again(folder: Path) -> int:
    """Train a run that has ended once more. Like the app, delete how it ended first."""
    (folder / "status.json").unlink()
    return train(folder)


def stop_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Request a stop once a step was logged. The program sees it at the end of the next step."""
    append = RunFiles.append_metrics

    def append_and_stop(run_files: RunFiles, logged: int, *args: Any) -> None:
        append(run_files, logged, *args)
        if logged == step:
            (run_files.folder / "stop").touch()

    monkeypatch.setattr(RunFiles, "append_metrics", append_and_stop)


def train_in_two_parts(run: Path, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train a run that is stopped after a step and resumed."""
    with monkeypatch.context() as patched:
        stop_after(step, patched)
        assert train(run) == STOPPED
    assert resume(run) == FINISHED


def status_of(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / "status.json").read_text(encoding="utf-8"))
    return value


def error_of(folder: Path) -> str:
    """Train a run that must fail; return its error."""
    assert train(folder) == FAILED
    return str(status_of(folder)["error"])


def lines_of(folder: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_bytes().split(b"\n")[:-1]]


def training_lines(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl with a training loss."""
    return [line for line in lines_of(folder) if "loss" in line]


def losses_of(folder: Path) -> dict[int, float]:
    """Return step -> training loss."""
    return {line["step"]: line["loss"] for line in training_lines(folder)}


def values_of(folder: Path, name: str) -> list[float]:
    """Return one metric of all lines with a training loss."""
    return [line[name] for line in training_lines(folder)]


def checkpoint_steps(folder: Path) -> list[int]:
    """Return the steps of the checkpoints of a run."""
    places = (folder / "checkpoints").glob("checkpoint-*")
    return sorted(int(path.name.split("-")[1]) for path in places)


def copy_model(folder: Path) -> Path:
    """Copy the demo model, to be damaged."""
    return Path(shutil.copytree(DEMO / "model", folder))


def tiny_model(folder: Path, config: Any) -> Path:
    """Make a model of another architecture with random weights and the demo's tokenizer."""
    from transformers import AutoModelForCausalLM

    copy_model(folder)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def load_result(run: Path, **settings: Any) -> Any:
    """Load the result of a run as a user would."""
    from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    stage = json.loads((run / "job.json").read_text(encoding="utf-8"))["stage"]
    is_scorer = STAGES[stage].head == "score"
    loader: Any
    if (run / "output" / "adapter_config.json").exists():
        loader = AutoPeftModelForCausalLM
        if is_scorer:
            loader = AutoPeftModelForSequenceClassification
            settings["num_labels"] = 1
    else:
        loader = AutoModelForSequenceClassification if is_scorer else AutoModelForCausalLM
    return loader.from_pretrained(run / "output", **settings).eval()


def logits_of(model: Any) -> Any:
    """Return the logits of a model for one fixed text."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(DEMO / "model")
    with torch.no_grad():
        return model(**tokenizer("hello, who are you", return_tensors="pt")).logits


def result_is_usable(run: Path) -> bool:
    """Return True if the result of a run loads and gives finite logits."""
    return bool(logits_of(load_result(run)).isfinite().all())
