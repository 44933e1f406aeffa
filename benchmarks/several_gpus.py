"""Print what each of several GPUs holds, and how fast they are together, by estimate and forecast.

    python benchmarks/several_gpus.py [--max-length N]

For each model, method, card (24, 48 and 80 GB) and number of cards: GiB on each card and tokens a
second of all, or a dash where it does not fit; and the number up to which twice as many cards are
half as fast again. Each takes one row of the maximum length at once. Needs no GPU.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from core.job import SpecError
from core.resolve import resolve
from core.speed.doubling import MIN_GAIN

MODELS = (
    "meta-llama/Llama-3.1-8B",
    "Qwen/Qwen3-14B",
    "Qwen/Qwen3-32B",
    "meta-llama/Llama-3.1-70B",
)
METHODS = ("full", "lora", "qlora")
CARDS = ("rtx-4090", "l40s", "h100")
COUNTS = (1, 2, 4, 8)
GIB = 2**30
NOTHING = "–"
"""Stands for a job that does not fit."""


@dataclass(frozen=True)
class Cell:
    """A job on a number of cards, if it fits."""

    memory_bytes: int
    """Memory of each card."""
    division: str
    """ddp or fsdp; "" on one card."""
    tokens_per_second: float
    """Of all cards together."""

    def __str__(self) -> str:
        parts = (f"{self.memory_bytes / GIB:.0f} GiB", self.division)
        return " ".join((*filter(None, parts), f"{self.tokens_per_second:,.0f}/s"))


def cell(model: str, method: str, card: str, count: int, max_length: int) -> Cell | None:
    """Return a job with the division that is chosen; None where it does not fit."""
    fields = {
        "model": model,
        "method": method,
        "gpu": card,
        "num_devices": count,
        "max_length": max_length,
        "per_device_train_batch_size": 1,
        "gradient_checkpointing": True,
        "optim": "adamw_torch_fused",
    }
    try:
        job = resolve(fields)
        memory, speed = job.estimate(), job.speed()
    except SpecError:
        return None
    if memory.verdict == "does_not_fit" or speed is None:
        return None
    division = job.job.parallelism if count > 1 else ""
    return Cell(memory.total_bytes, division, speed.tokens_per_second)


def most_that_pay(cells: Sequence[Cell | None]) -> str:
    """Return the number of cards up to which twice as many are MIN_GAIN times as fast."""
    fitting = [(count, each) for count, each in zip(COUNTS, cells, strict=True) if each]
    if not fitting:
        return NOTHING
    (most, last), *others = fitting
    for count, each in others:
        if each.tokens_per_second < MIN_GAIN * last.tokens_per_second:
            break
        most, last = count, each
    return str(most)


def lines(max_length: int) -> Iterator[str]:
    """Yield the table in Markdown, a row for each model, method and card."""
    heads = ("model", "method", "card", *(f"{count} GPU" for count in COUNTS), "pays up to")
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    for model in MODELS:
        for method in METHODS:
            for card in CARDS:
                cells = [cell(model, method, card, count, max_length) for count in COUNTS]
                shown = [str(each or NOTHING) for each in cells]
                row = (model, method, card, *shown, most_that_pay(cells))
                yield f"| {' | '.join(row)} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--max-length", type=int, default=2048)
    for line in lines(parser.parse_args(arguments).max_length):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
