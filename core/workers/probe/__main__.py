"""Compute on the card that CUDA_VISIBLE_DEVICES names: the child of core/runs/card_probe.py.

Run `python -m core.workers.probe`, which core/workers/child.py serves.
"""

from collections.abc import Mapping
from typing import Any

from core.job import Problem
from core.workers.child import Reporter, serve

SIZE = 1024
FIX = "see what `nvidia-smi` says of it"


def main() -> None:
    """Answer requests on standard input."""
    serve(answer, explain)


def answer(_request: Mapping[str, Any], _report: Reporter) -> float:
    """Return the sum of a product of matrices of ones, computed on the card.

    Raises RuntimeError if there is no card, or it fails or computes something else.
    """
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError("no card is there")
    ones = torch.ones(SIZE, SIZE, device="cuda")
    total = float((ones @ ones).sum())
    if total != SIZE**3:
        raise RuntimeError(f"the card computes {total:g} in place of {SIZE**3:g}")
    return total


def explain(error: Exception, _request: Mapping[str, Any]) -> Problem:
    """Return why the card cannot be used."""
    first_line = (str(error).strip().splitlines() or ["no message"])[0]
    return Problem("device", first_line, FIX)


if __name__ == "__main__":
    main()
