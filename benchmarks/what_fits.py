"""Largest batch of 2,048-token rows for each model, method and card, by the memory estimate.

    python benchmarks/what_fits.py [--models ID ...] [--gpus ID ...] [--max-length N] [--json]

Prints a table in Markdown. Computes only: needs no GPU and no network.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from core.advise import what_fits
from core.advise.batch import Cell
from core.job import SpecError
from core.models import gpus, models
from core.training.contract.methods import METHODS

MODELS = (
    "Qwen/Qwen2.5-0.5B",
    "meta-llama/Llama-3.2-1B",
    "meta-llama/Llama-3.2-3B",
    "Qwen/Qwen2.5-7B",
    "meta-llama/Llama-3.1-8B",
    "Qwen/Qwen3-14B",
    "Qwen/Qwen3-32B",
    "meta-llama/Llama-3.1-70B",
)
METHOD_IDS = ("full", "lora", "qlora")
GPUS = ("t4", "rtx-3060", "rtx-4090", "rtx-5090", "l40s", "a100-80gb", "h100", "h200")
NOTHING = "–"
"""Stands for a card that is too small for any batch."""


def markdown(cells: Sequence[Cell]) -> Iterator[str]:
    """Yield the lines of the table: a row for each model and method, a column for each card."""
    cards = tuple(dict.fromkeys(cell.gpu for cell in cells))
    batches = {(cell.model, cell.method, cell.gpu): cell.batch for cell in cells}
    yield _row("model", "method", *(gpus()[card].name for card in cards))
    yield _row("---", "---", *("--:" for _ in cards))
    for model, method in dict.fromkeys((cell.model, cell.method) for cell in cells):
        sizes = [str(batches[model, method, card] or NOTHING) for card in cards]
        yield _row(models()[model].name, METHODS[method].title, *sizes)


def _row(*texts: str) -> str:
    return f"| {' | '.join(texts)} |"


def main() -> None:
    """Estimate all cells and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument(
        "--models", nargs="+", default=MODELS, choices=tuple(models()), metavar="ID", help="Hub ids"
    )
    parser.add_argument(
        "--gpus", nargs="+", default=GPUS, choices=tuple(gpus()), metavar="ID", help="GPU presets"
    )
    parser.add_argument("--max-length", type=int, default=2048, metavar="N", help="tokens of a row")
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    options = parser.parse_args()
    shapes = [(model, models()[model].shape) for model in options.models]
    cards = [gpus()[card] for card in options.gpus]
    try:
        cells = what_fits(shapes, METHOD_IDS, cards, options.max_length)
    except SpecError as error:
        parser.error(str(error))
    if options.json:
        print(json.dumps([asdict(cell) for cell in cells], indent=2))
    else:
        print("\n".join(markdown(cells)))


if __name__ == "__main__":
    main()
