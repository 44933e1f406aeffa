"""Run folders for the tests of the training program: a few rows, the demo model, a job of a few steps."""

import json
import shutil
from pathlib import Path
from typing import Any

from core.job import JobSpec
from core.training.__main__ import main
from core.training.contract.job import Job
from tests.builders.paths import DEMO

NUM_ROWS = 48


def make_run(folder: Path, **fields: object) -> Path:
    """A run folder as the app makes it, without its own copy of the program."""
    (folder / "data").mkdir(parents=True)
    rows = (DEMO / "data.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "data" / "train.jsonl").write_text("".join(rows[:NUM_ROWS]), encoding="utf-8")
    (folder / "data" / "eval.jsonl").write_text(
        "".join(rows[NUM_ROWS : NUM_ROWS + 4]), encoding="utf-8"
    )
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


def job_of(**fields: Any) -> Job:
    """The job of the demo model with these settings."""
    return Job(model=str(DEMO / "model"), dataset="data/train.jsonl", **fields)


def write_rows(folder: Path, *rows: object) -> None:
    """Puts other training rows into a run folder."""
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    (folder / "data" / "train.jsonl").write_text(
        "".join(line + "\n" for line in lines), encoding="utf-8"
    )


def train(folder: Path) -> int:
    """Runs the program in this process; returns its exit code."""
    return main(["job.json"], folder=folder)


def train_again(folder: Path) -> int:
    """The same for a run that has ended, the way the app resumes one: it forgets how it ended."""
    (folder / "status.json").unlink()
    return train(folder)


def status_of(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / "status.json").read_text(encoding="utf-8"))
    return value


def lines_of(folder: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_bytes().split(b"\n")[:-1]]


def losses_of(folder: Path) -> dict[int, float]:
    """Step -> training loss."""
    return {line["step"]: line["loss"] for line in lines_of(folder) if "loss" in line}


def copy_model(folder: Path) -> Path:
    """A copy of the demo model, to be damaged."""
    return Path(shutil.copytree(DEMO / "model", folder))


def tiny_model(folder: Path, config: Any) -> Path:
    """A model of another architecture with random weights and the demo's tokenizer."""
    from transformers import AutoModelForCausalLM

    copy_model(folder)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder
