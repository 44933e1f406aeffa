"""Print where the memory of 8B and 70B models goes, by method, card and stage.

    python -m benchmarks.where_memory_goes [--svg FILE]

Prints the tables of docs/where_memory_goes.md. Computes only: needs no GPU and no network.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from core.advise import Case
from core.after_training.compare.report import svg
from core.job import JobSpec
from core.memory import MemoryEstimate
from core.models import gpus, models
from core.training.contract.methods import METHODS

GIB = 2**30
MODELS = ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-70B")
METHOD_IDS = ("full", "lora", "qlora")
GPUS = ("t4", "rtx-3060", "rtx-4090", "l40s", "a100-40gb", "a100-80gb", "h100", "h200")
STAGE_MODEL, STAGE_GPU = "meta-llama/Llama-3.1-8B", "h200"
STAGE_IDS = ("sft", "dpo", "kto", "grpo", "ppo")
STAGE_METHODS = ("lora", "qlora")
STAGE_BATCH = 2
"""Rows of a batch: KTO compares a row with another one, so it needs two."""
STYLE = (
    "<style>text{fill:#333;font:12px sans-serif}"
    "@media (prefers-color-scheme:dark){text{fill:#ddd}}</style>"
)


def case_of(model: str, gpu: str, **fields: object) -> Case:
    """Return a job with 2,048-token rows, checkpointing and the defaults of its method."""
    job = JobSpec.parse({"model": model, "gpu": gpu, "max_length": 2048, **fields})
    return Case(job, models()[model].shape, gpus()[gpu])


def by_card() -> Iterator[str]:
    """Yield a row for each model and method: GiB for one row, and tokens/s where that fits."""
    yield _row("model", "method", "GiB", *(gpus()[card].name for card in GPUS))
    yield _row("---", "---", "--:", *("--:" for _ in GPUS))
    for model in MODELS:
        for method in METHOD_IDS:
            fields = {"method": method, "per_device_train_batch_size": 1}
            needed = case_of(model, GPUS[-1], **fields).memory.total_bytes
            cells = [_speed(case_of(model, card, **fields)) for card in GPUS]
            yield _row(models()[model].name, METHODS[method].title, f"{needed / GIB:.1f}", *cells)


def _speed(case: Case) -> str:
    speed = case.speed
    if case.memory.verdict == "does_not_fit" or speed is None:
        return "–"
    return f"{speed.tokens_per_second:,.0f}"


def stages() -> Iterator[tuple[str, MemoryEstimate]]:
    """Yield the estimate of each stage with each method, under a title."""
    for method in STAGE_METHODS:
        for stage in STAGE_IDS:
            fields = {"stage": stage, "method": method}
            case = case_of(
                STAGE_MODEL, STAGE_GPU, per_device_train_batch_size=STAGE_BATCH, **fields
            )
            yield f"{stage}, {METHODS[method].title}", case.memory


def by_stage() -> Iterator[str]:
    """Yield a row for each stage and method: GiB of each component at the peak."""
    found = dict(stages())
    names = dict.fromkeys(part.name for each in found.values() for part in each.components)
    yield _row("stage", *(name.replace("_", " ") for name in names), "total")
    yield _row("---", *("--:" for _ in names), "--:")
    for title, each in found.items():
        sizes = {part.name: part.bytes for part in each.components}
        cells = [f"{sizes[name] / GIB:.1f}" if name in sizes else "–" for name in names]
        yield _row(title, *cells, f"{each.total_bytes / GIB:.1f}")


def drawing() -> str:
    """Return the stages as stacked bars, one SVG file."""
    bars: list[svg.Bar] = []
    used: dict[str, float] = {}
    for title, each in stages():
        parts = {str(part.name): float(part.bytes) for part in each.components}
        bars.append(svg.Bar(title, parts, f"{each.total_bytes / GIB:.1f} GiB"))
        used |= parts
    name = f"{models()[STAGE_MODEL].name}, {STAGE_BATCH} rows of 2,048 tokens: GiB"
    return svg.standalone(svg.stacked_bars(bars, None, GIB, name), list(used), STYLE)


def _row(*texts: str) -> str:
    return f"| {' | '.join(texts)} |"


def main() -> None:
    """Print both tables as Markdown, and draw the second if asked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--svg", type=Path, metavar="FILE", help="also draw the stages")
    options = parser.parse_args()
    print(*by_card(), "", *by_stage(), sep="\n")
    if options.svg:
        options.svg.write_text(drawing(), encoding="utf-8")


if __name__ == "__main__":
    main()
