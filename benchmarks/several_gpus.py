"""Print what each of several GPUs holds, and how fast they are together, by estimate and forecast.

    python benchmarks/several_gpus.py [--max-length N]

For each model, method, card and number of cards: GiB on each card and tokens a second, or a dash
where it does not fit. One row of the maximum length at once. Needs no GPU.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from core.job import SpecError
from core.resolve import resolve

MODELS = (
    "meta-llama/Llama-3.1-8B",
    "Qwen/Qwen3-14B",
    "Qwen/Qwen3-32B",
    "meta-llama/Llama-3.1-70B",
)
METHODS = ("full", "lora", "qlora")
CARDS = ("rtx-4090", "l40s", "h100")
COUNTS = (1, 2, 4, 8)
NOTHING = "–"
"""Stands for a job that does not fit."""


def cell(model: str, method: str, card: str, count: int, max_length: int) -> str:
    """Return the memory of each card and the rate of all, for the division that is chosen."""
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
        return NOTHING
    if memory.verdict == "does_not_fit" or speed is None:
        return NOTHING
    division = job.job.parallelism if count > 1 else ""
    return f"{memory.total_bytes / 2**30:.0f} GiB {division} {speed.tokens_per_second:,.0f}/s"


def lines(max_length: int) -> Iterator[str]:
    """Yield the table in Markdown, a row for each model, method and card."""
    heads = ("model", "method", "card", *(f"{count} GPU" for count in COUNTS))
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    for model in MODELS:
        for method in METHODS:
            for card in CARDS:
                cells = (cell(model, method, card, count, max_length) for count in COUNTS)
                yield f"| {model} | {method} | {card} | {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--max-length", type=int, default=2048)
    for line in lines(parser.parse_args(arguments).max_length):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
