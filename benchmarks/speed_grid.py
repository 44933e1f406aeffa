"""Grid of training_speed.py: the models, methods and rows, and the programs that train on them.

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

from benchmarks.memory_grid import LLAMA_1B, LLAMA_8B, TOY_SHORTENING, Point
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
"""Tokens that a point trains on, about: 30 steps of four rows of 2048."""
TOY_TOKENS = 4_000
NUM_LINES = 6
"""Lines that a training logs; the first third only warms up."""
FEWEST_STEPS = 12
MOST_PASSES = 400
"""Forward passes of a point; for small ones the processor takes most of the time."""
LONG_RUN_ROWS = 50_000
"""Rows that the profiles plan for: a run of hours, for which compiling pays."""
LORA: Settings = MappingProxyType(
    {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"}
)
"""Equal for all contenders."""
NF4: Settings = MappingProxyType(
    {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": "bfloat16",
    }
)
METHODS = ("lora", "qlora", "full")
DEFAULT_BATCH = 8
"""Rows per forward pass of TRL's defaults."""


@dataclass(frozen=True)
class Rows:
    """Rows that are trained on."""

    name: str
    max_length: int
    rows_per_step: int
    """Rows of an optimizer step, for contenders without a batch size of their own."""
    mean_tokens: int | None = None
    """Mean of rows that differ, as chats do; None for rows that all have max_length tokens."""

    def lengths(self, num_rows: int) -> tuple[int, ...]:
        """Return the tokens of each row."""
        if self.mean_tokens is None:
            return (self.max_length,) * num_rows
        generator = random.Random(0)
        shortest = self.mean_tokens // 8
        lengths = []
        for _ in range(num_rows):
            drawn = shortest + generator.expovariate(1 / (self.mean_tokens - shortest))
            lengths.append(min(self.max_length, round(drawn)))
        return tuple(lengths)

    @property
    def shortened(self) -> "Rows":
        """Return shorter rows, for toys."""
        mean = self.mean_tokens and self.mean_tokens // 8
        return replace(
            self,
            max_length=max(16, self.max_length // TOY_SHORTENING),
            mean_tokens=mean,
            rows_per_step=4,
        )


@dataclass(frozen=True)
class Contender:
    """Program that trains: ours under a profile, or a bare script with another tool's settings."""

    name: str
    profile: str = ""
    """Profile of our program; empty for a bare script."""
    batch: tuple[int, int] | None = None
    """(rows per forward pass, forward passes per step); None takes all rows of a step at once."""
    config: Settings = field(default_factory=dict)
    """Fields of SFTConfig that differ from TRL's defaults."""
    config_of_short_rows: Settings = field(default_factory=dict)
    """More of them, for rows that differ in length."""
    load: Settings = field(default_factory=dict)
    """Arguments of from_pretrained that differ from TRL's defaults."""


BF16 = MappingProxyType({"dtype": "bfloat16"})
CONTENDERS = (
    Contender("tailor fastest", profile="fastest"),
    Contender("trl defaults"),
    # LLaMA-Factory 0.9.5, LLaMA Board: webui/components/train.py,
    # model/model_utils/checkpointing.py. TRL lacks its head, which writes all logits in float32.
    Contender(
        "llama-factory",
        batch=(2, 8),
        config=MappingProxyType(
            {"optim": "adamw_torch", "gradient_checkpointing_kwargs": {"use_reentrant": True}}
        ),
        load=BF16,
    ),
    # Unsloth Studio 2026.10: configs/model_defaults/default.yaml, utils/padding_choice.py. TRL
    # lacks its kernels; the script does not offload checkpoints, which would only slow it down.
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
class SpeedPoint:
    """Training to measure."""

    model: str
    """Hub id of a preset."""
    method: str
    rows: Rows
    contender: Contender
    is_toy: bool = False

    @property
    def group(self) -> str:
        """Return the name of the points that this one is compared with."""
        size = "toy " if self.is_toy else ""
        return f"{size}{self.model.split('/')[1]} {self.method} {self.rows.name}"

    @property
    def id(self) -> str:
        return f"{self.group}, {self.contender.name}"

    @property
    def as_toy(self) -> "SpeedPoint":
        """Return the point at a size that any machine can train."""
        return replace(self, rows=self.rows.shortened, is_toy=True)

    @property
    def config(self) -> dict[str, object]:
        """Return the model's config.json."""
        fields = memory_job(self.method, 1, self.rows.max_length)
        named = {"architectures": ["LlamaForCausalLM"]}  # by which TRL finds the class
        return Point(self.model, fields, is_toy=self.is_toy).config | named

    @cached_property
    def shape(self) -> ModelShape:
        return ModelShape.from_config(self.config)

    @property
    def mean_tokens(self) -> float:
        return self.rows.mean_tokens or self.rows.max_length

    def num_steps(self, tokens_per_step: float, passes: int) -> int:
        """Return the optimizer steps, of `passes` forward passes each: a multiple of NUM_LINES."""
        num_tokens = TOY_TOKENS if self.is_toy else MEASURED_TOKENS
        wanted = max(FEWEST_STEPS, num_tokens / tokens_per_step)
        most_steps_per_line = max(1, MOST_PASSES // (passes * NUM_LINES))
        return NUM_LINES * min(most_steps_per_line, ceil(wanted / NUM_LINES))

    def job(self, model: Path, gpu: Gpu) -> JobSpec:
        """Return our program's job, planned for a long run. Raises SpecError."""
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
        change = plan(asked, self.shape, gpu, statistics).change
        planned = asked.model_copy(update=dict(change))
        tokens = planned.max_length if planned.packing else self.mean_tokens
        steps = self.num_steps(
            planned.effective_batch_size * tokens, planned.gradient_accumulation_steps
        )
        return planned.model_copy(
            update={"max_steps": steps, "logging_steps": steps // NUM_LINES, "save_steps": 10**6}
        )

    def script(self, model: Path, folder: Path) -> dict[str, Any]:
        """Return the settings of a bare script."""
        contender = self.contender
        batch, passes = min(DEFAULT_BATCH, self.rows.rows_per_step), 1
        if contender.batch:
            batch, passes = contender.batch
        steps = self.num_steps(batch * passes * self.mean_tokens, passes)
        config = {
            "max_length": self.rows.max_length,
            "max_steps": steps,
            "logging_steps": steps // NUM_LINES,
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": passes,
            **contender.config,
        }
        if self.rows.mean_tokens:
            config.update(contender.config_of_short_rows)
        lora = quantization = None
        if self.method != "full":
            lora = dict(LORA)
        if self.method == "qlora":
            quantization = dict(NF4)
        return {
            "model": str(model),
            "rows": str(folder / "data" / "train.jsonl"),
            "config": config,
            "load": dict(contender.load),
            "lora": lora,
            "quantization": quantization,
        }


def make_folder(folder: Path, point: SpeedPoint, model: Path, gpu: Gpu) -> dict[str, Any]:
    """Write what a point's program reads; return the settings in which it differs from others."""
    num_rows = MEASURED_TOKENS // int(point.mean_tokens)
    if point.is_toy:
        num_rows = 2 * NUM_LINES * FEWEST_STEPS
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
    """Write what the app writes into a run folder, except the data."""
    shutil.copytree(
        ROOT / "core" / "training",
        folder / "training",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    (folder / "job.json").write_text(job.to_json(), encoding="utf-8")


def make_model(folder: Path, point: SpeedPoint) -> Path:
    """Return the folder of a point's model, with random weights; made once for each size."""
    size = "toy-" if point.is_toy else ""
    model = folder / f"{size}{point.model.split('/')[1]}"
    if not model.exists():
        write_model(model, point.config, has_holes=False)
    return model


FIRST = (
    # The most frequent questions first, then everything.
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
    *(SpeedPoint(*group, contender) for group in GROUPS for contender in _FAST),
    *(SpeedPoint(*group, _SMALLEST) for group in GROUPS),
)
"""Most informative first; the profile that is meant to be slow comes last."""
