"""Plans of "Fastest that fits": a table of models, methods and cards, by estimate and forecast.

    python benchmarks/plans.py [--profile fastest|smallest] [--mean-tokens N] [--max-length N]
        [--reasons] [--json]

Prints a table in Markdown. Computes only: needs no GPU and no network.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from core.advise import Plan, plan
from core.job import JobSpec, SpecError
from core.memory import MemoryEstimate, estimate
from core.models import gpus, models
from core.speed import RowStatistics, Speed, predict_speed
from core.training.contract.methods import METHODS

CASES = (
    ("Qwen/Qwen2.5-0.5B", "full", "rtx-3060"),
    ("Qwen/Qwen2.5-1.5B", "lora", "rtx-3060"),
    ("Qwen/Qwen2.5-1.5B", "qlora", "t4"),
    ("meta-llama/Llama-3.1-8B", "qlora", "rtx-3060"),
    ("meta-llama/Llama-3.1-8B", "qlora", "t4"),
    ("meta-llama/Llama-3.1-8B", "qlora", "rtx-3090"),
    ("meta-llama/Llama-3.1-8B", "lora", "rtx-4090"),
    ("meta-llama/Llama-3.1-8B", "lora", "a100-80gb"),
    ("meta-llama/Llama-3.1-8B", "full", "a100-80gb"),
    ("meta-llama/Llama-3.1-8B", "lora", "h200"),
    ("meta-llama/Llama-3.1-8B", "full", "h200"),
    ("Qwen/Qwen3-14B", "qlora", "rtx-4090"),
    ("Qwen/Qwen3-32B", "qlora", "a100-80gb"),
    ("meta-llama/Llama-3.1-70B", "qlora", "h200"),
)
GIB = 2**30
NUM_ROWS = 20_000
ATTENTION = {"varlen": "varlen", "sdpa": "SDPA", "eager": "eager", "flex_attention": "flex"}
OPTIMIZERS = {
    "adamw_torch_fused": "fused",
    "adamw_8bit": "8-bit",
    "paged_adamw_8bit": "paged 8-bit",
}
HEADINGS = (
    "model",
    "method",
    "card",
    "rows at once",
    "recomputed",
    "attention",
    "compiled",
    "AdamW",
    "GiB",
    "tokens/s",
)
NUMBERS = ("GiB", "tokens/s")
"""Headings of columns that are aligned to the right."""


@dataclass(frozen=True)
class PlannedJob:
    """Row of the table."""

    asked: JobSpec
    card: str
    job: JobSpec
    """Job with the changes of the plan."""
    plan: Plan
    memory: MemoryEstimate
    speed: Speed | None

    def to_json(self) -> Mapping[str, object]:
        """Return the row as plain values."""
        return {
            "model": self.asked.model,
            "method": self.asked.method,
            "gpu": self.card,
            "change": dict(self.plan.change),
            "reasons": {choice.field: choice.reason for choice in self.plan.choices},
            "total_bytes": self.memory.total_bytes,
            "verdict": self.memory.verdict,
            "speed": self.speed.to_json() if self.speed else {},
        }

    def cells(self) -> Iterator[str]:
        """Yield the text of each column."""
        job = self.job
        yield models()[job.model].name
        yield METHODS[job.method].title
        yield gpus()[self.card].name
        rows = "packs" if job.packing else "rows"
        yield f"{job.per_device_train_batch_size} × {job.gradient_accumulation_steps} {rows}"
        yield self._recomputed()
        yield ATTENTION[job.attn_implementation]
        yield "yes" if job.torch_compile else "no"
        yield OPTIMIZERS[job.optim]
        yield self._memory_use()
        yield f"{self.speed.tokens_per_second:,.0f}" if self.speed else ""

    def _recomputed(self) -> str:
        job = self.job
        if not job.gradient_checkpointing:
            if not job.torch_compile or job.activation_memory_budget == 1:
                return "none"
            return f"beyond {job.activation_memory_budget:.0%}"
        layers = "all"
        if job.checkpoint_every_n_layers != 1:
            layers = f"1 of {job.checkpoint_every_n_layers}"
        if job.activation_offloading:
            layers += ", offloaded"
        return layers

    def _memory_use(self) -> str:
        memory = self.memory
        used = f"{memory.total_bytes / GIB:.1f} of {memory.capacity_bytes / GIB:.0f}"
        if memory.verdict != "fits":
            used += ": does not fit"
        return used


def plan_for(fields: Mapping[str, object], card: str, rows: RowStatistics) -> PlannedJob:
    """Plan one job for one card. Raises SpecError for a job that cannot run on its model."""
    asked = JobSpec.parse(fields)
    gpu = gpus()[card]
    shape = models()[asked.model].shape
    chosen = plan(asked, shape, gpu, rows)
    job = JobSpec.parse({**asked.model_dump(), **chosen.change})
    memory = estimate(job, shape, gpu)
    speed = predict_speed(job, shape, gpu, rows)
    return PlannedJob(asked, card, job, chosen, memory, speed)


def markdown(table: Sequence[PlannedJob], with_reasons: bool) -> Iterator[str]:
    """Yield the lines of the table and, if wanted, the reason for each field of each row."""
    yield _row(*HEADINGS)
    yield _row(*("--:" if heading in NUMBERS else "---" for heading in HEADINGS))
    for row in table:
        yield _row(*row.cells())
    if not with_reasons:
        return
    for row in table:
        model, method, card, *_ = row.cells()
        yield f"\n{model} · {method} · {card}\n"
        for choice in row.plan.choices:
            yield f"- `{choice.field}` {choice.value}: {choice.reason}"


def _row(*texts: str) -> str:
    return f"| {' | '.join(texts)} |"


def main() -> None:
    """Plan all cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--profile", default="fastest", choices=("fastest", "smallest"))
    parser.add_argument(
        "--mean-tokens", type=int, default=300, metavar="N", help=f"of {NUM_ROWS:,} rows"
    )
    parser.add_argument(
        "--max-length", type=int, default=2048, metavar="N", help="tokens of the longest row"
    )
    parser.add_argument("--reasons", action="store_true", help="say why, field by field")
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    options = parser.parse_args()
    common = {"profile": options.profile, "max_length": options.max_length}
    rows = RowStatistics(NUM_ROWS, options.mean_tokens)
    try:
        table = [
            plan_for({"model": model, "method": method, **common}, card, rows)
            for model, method, card in CASES
        ]
    except SpecError as error:
        parser.error(str(error))
    if options.json:
        print(json.dumps([row.to_json() for row in table], indent=2))
    else:
        print("\n".join(markdown(table, options.reasons)))


if __name__ == "__main__":
    main()
