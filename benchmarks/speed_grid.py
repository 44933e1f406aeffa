"""What training_speed.py measures: the models, methods and rows, and who trains on them with which settings.

Holds the tables and turns a point into the files of a run. Never runs anything.
"""

import json
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from math import ceil
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.memory_grid import LLAMA_1B, LLAMA_8B, TOY_SHORTENING
from benchmarks.memory_grid import Point as MemoryPoint
from benchmarks.memory_grid import job as memory_job
from benchmarks.memory_inputs import write_model, write_rows
from core.advise import plan
from core.job import JobSpec
from core.models import Gpu, ModelShape
from core.speed import RowStatistics
from core.training.contract.stages import STAGES

Settings = Mapping[str, object]

ROOT = Path(__file__).resolve().parent.parent
MEASURED_TOKENS = 240_000
"""About how many a point trains on: 30 steps of four rows of 2048."""
TOY_TOKENS = 4_000
NUM_LINES = 6
"""Lines that a training logs, of which the first third only warms up."""
FEWEST_STEPS = 12
MOST_PASSES = 400
"""Forward passes of a point: of small ones the processor's work is most of the time."""
LONG_RUN_ROWS = 50_000
"""Rows that the profiles plan for: a run of hours, which compiling pays for."""
LORA: Settings = MappingProxyType(
    {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"}
)
"""The same for everyone."""
NF4: Settings = MappingProxyType(
    {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": "bfloat16",
    }
)
METHODS = ("lora", "qlora", "full")


@dataclass(frozen=True)
class Rows:
    """What is trained on."""

    name: str
    max_length: int
    rows_per_step: int
    """Of an optimizer step, for those who have no batch size of their own."""
    mean_tokens: int | None = None
    """Of rows that differ, as chats do; None for rows that all have max_length tokens."""

    def lengths(self, num_rows: int) -> tuple[int, ...]:
        """Tokens of each row."""
        if self.mean_tokens is None:
            return (self.max_length,) * num_rows
        generator, shortest = random.Random(0), self.mean_tokens // 8
        drawn = (
            shortest + generator.expovariate(1 / (self.mean_tokens - shortest))
            for _ in range(num_rows)
        )
        return tuple(min(self.max_length, round(length)) for length in drawn)

    @property
    def shortened(self) -> "Rows":
        """The same for toys."""
        mean = self.mean_tokens and self.mean_tokens // 8
        return replace(
            self,
            max_length=max(16, self.max_length // TOY_SHORTENING),
            mean_tokens=mean,
            rows_per_step=4,
        )


@dataclass(frozen=True)
class Contender:
    """Who trains: our program under a profile, or a bare script under somebody's settings."""

    name: str
    profile: str = ""
    """Of our program; empty for a bare script."""
    batch: tuple[int, int] | None = None
    """(rows in a forward pass, forward passes in a step); None takes all rows of a step at once."""
    config: Settings = field(default_factory=dict)
    """SFTConfig, where it is not TRL's default."""
    config_of_short_rows: Settings = field(default_factory=dict)
    """Besides, for rows that differ in length."""
    load: Settings = field(default_factory=dict)
    """from_pretrained, where it is not TRL's default."""


BF16 = MappingProxyType({"dtype": "bfloat16"})
CONTENDERS = (
    Contender("tailor fastest", profile="fastest"),
    Contender("trl defaults"),
    # LLaMA-Factory 0.9.5, LLaMA Board: webui/components/train.py, model/model_utils/checkpointing.py. Its head, which
    # writes out all logits in float32, is not to be had in TRL.
    Contender(
        "llama-factory",
        batch=(2, 8),
        config=MappingProxyType(
            {"optim": "adamw_torch", "gradient_checkpointing_kwargs": {"use_reentrant": True}}
        ),
        load=BF16,
    ),
    # Unsloth Studio 2026.10: configs/model_defaults/default.yaml, utils/padding_choice.py. Its kernels are not to be
    # had in TRL; nor does the script move checkpoints to main memory, which would only slow it down.
    Contender(
        "unsloth studio",
        batch=(2, 4),
        config=MappingProxyType({"optim": "adamw_8bit", "logging_steps": 1}),
        config_of_short_rows=MappingProxyType({"padding_free": True, "max_length": None}),
        load=BF16,
    ),
    Contender("tailor smallest", profile="smallest"),
)
DENSE_2048, SHORT = Rows("4x2048", 2048, 4), Rows("short rows", 2048, 32, mean_tokens=200)
DENSE_512 = Rows("4x512", 512, 4)


@dataclass(frozen=True)
class Point:
    """One training to measure."""

    model: str
    """Hub id of a preset."""
    method: str
    rows: Rows
    contender: Contender
    is_toy: bool = False

    @property
    def group(self) -> str:
        """What it shares with those that it is compared with."""
        return f"{'toy ' if self.is_toy else ''}{self.model.split('/')[1]} {self.method} {self.rows.name}"

    @property
    def id(self) -> str:
        return f"{self.group}, {self.contender.name}"

    @property
    def as_toy(self) -> "Point":
        """The same at a size that any machine can train."""
        return replace(self, rows=self.rows.shortened, is_toy=True)

    @property
    def config(self) -> dict[str, object]:
        """The model's config.json."""
        sized = memory_job(self.method, 1, self.rows.max_length)
        named = {"architectures": ["LlamaForCausalLM"]}  # by which TRL finds the class
        return MemoryPoint(self.model, sized, is_toy=self.is_toy).config | named

    @cached_property
    def shape(self) -> ModelShape:
        return ModelShape.from_config(self.config)

    @property
    def mean_tokens(self) -> float:
        return self.rows.mean_tokens or self.rows.max_length

    def num_steps(self, tokens_per_step: float, passes: int) -> int:
        """Optimizer steps of the training, of so many forward passes each: a multiple of the lines that it logs."""
        wanted = (TOY_TOKENS if self.is_toy else MEASURED_TOKENS) / tokens_per_step
        most = max(1, MOST_PASSES // (passes * NUM_LINES))
        return NUM_LINES * min(most, ceil(max(FEWEST_STEPS, wanted) / NUM_LINES))

    def job(self, model: Path, gpu: Gpu) -> JobSpec:
        """The job of our program on a model folder, as its profile plans it for a long run. Raises SpecError."""
        asked = JobSpec.parse(
            {
                "model": str(model),
                "method": self.method,
                "profile": self.contender.profile,
                "dataset": "data/train.jsonl",
                "assistant_only_loss": False,
                "max_length": self.rows.max_length,
                "per_device_train_batch_size": self.rows.rows_per_step,
                "gradient_accumulation_steps": 1,
                "eval_fraction": 0,
                "num_samples": 0,
                "halve_batch_on_oom": False,
            }
        )
        statistics = RowStatistics(
            LONG_RUN_ROWS, self.mean_tokens, min(self.rows.max_length, 3 * int(self.mean_tokens))
        )
        planned = asked.model_copy(update=dict(plan(asked, self.shape, gpu, statistics).change))
        tokens = planned.max_length if planned.packing else self.mean_tokens
        steps = self.num_steps(
            planned.effective_batch_size * tokens, planned.gradient_accumulation_steps
        )
        return planned.model_copy(
            update={"max_steps": steps, "logging_steps": steps // NUM_LINES, "save_steps": 10**6}
        )

    def script(self, model: Path, folder: Path) -> dict[str, Any]:
        """The settings of a bare script."""
        batch, passes = self.contender.batch or (min(8, self.rows.rows_per_step), 1)
        steps = self.num_steps(batch * passes * self.mean_tokens, passes)
        config = {
            "max_length": self.rows.max_length,
            "max_steps": steps,
            "logging_steps": steps // NUM_LINES,
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": passes,
            **self.contender.config,
            **(self.contender.config_of_short_rows if self.rows.mean_tokens else {}),
        }
        return {
            "model": str(model),
            "rows": str(folder / "data" / "train.jsonl"),
            "config": config,
            "load": dict(self.contender.load),
            "lora": dict(LORA) if self.method != "full" else None,
            "quantization": dict(NF4) if self.method == "qlora" else None,
        }


def make_folder(folder: Path, point: Point, model: Path, gpu: Gpu) -> dict[str, Any]:
    """Puts into a folder what a point's program reads; returns the settings that tell it from others."""
    num_rows = (
        2 * NUM_LINES * FEWEST_STEPS if point.is_toy else MEASURED_TOKENS // int(point.mean_tokens)
    )
    write_rows(folder / "data" / "train.jsonl", point.rows.lengths(num_rows), STAGES["sft"])
    if not point.contender.profile:
        settings = point.script(model, folder)
        (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
        return dict(settings["config"])
    job = point.job(model, gpu)
    make_run_folder(folder, job)
    defaults = JobSpec.parse({"model": str(model)})
    return {name: value for name, value in job if value != getattr(defaults, name)}


def make_run_folder(folder: Path, job: JobSpec) -> None:
    """Puts into a folder what the app puts into a run's, but for the data."""
    shutil.copytree(
        ROOT / "core" / "training",
        folder / "training",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    (folder / "job.json").write_text(job.to_json(), encoding="utf-8")


def make_model(folder: Path, point: Point) -> Path:
    """The model of a point, with random weights, in a folder for all of its size; made once."""
    model = folder / f"{'toy-' if point.is_toy else ''}{point.model.split('/')[1]}"
    if not model.exists():
        write_model(model, point.config, has_holes=False)
    return model


FIRST = (
    # One line each of what people ask first; then everything.
    (LLAMA_8B, "lora", DENSE_2048),
    (LLAMA_8B, "lora", SHORT),
    (LLAMA_1B, "lora", SHORT),
    (LLAMA_8B, "qlora", DENSE_2048),
    (LLAMA_1B, "full", DENSE_2048),
    (LLAMA_8B, "lora", DENSE_512),
    (LLAMA_8B, "full", DENSE_2048),
)
GROUPS = tuple(
    dict.fromkeys((*FIRST, *product((LLAMA_8B, LLAMA_1B), METHODS, (DENSE_2048, SHORT, DENSE_512))))
)
*_FAST, _SMALLEST = CONTENDERS
GRID = (
    *(Point(*group, contender) for group in GROUPS for contender in _FAST),
    *(Point(*group, _SMALLEST) for group in GROUPS),
)
"""Most informative first; what is meant to be slow comes last."""
