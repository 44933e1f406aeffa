"""Measure how fast this machine multiplies matrices, to compare a training's speed with.

python benchmarks/gemm_rate.py    prints floating-point operations per second
"""

import time

import torch

SIZES = {"cuda": (8192, torch.bfloat16, 200), "cpu": (512, torch.float32, 20)}
"""Device -> side of the matrices, type, number of products: a second of a large card."""
ROUNDS = 5


def gemm_rate() -> float:
    """Return floating-point operations per second of large matmuls, the best of some rounds."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size, dtype, repeats = SIZES[device]
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return max(_rate_of_round(left, right, repeats) for _ in range(ROUNDS))


def _rate_of_round(left: torch.Tensor, right: torch.Tensor, repeats: int) -> float:
    out = left @ right
    _wait()
    began = time.perf_counter()
    for _ in range(repeats):
        torch.mm(left, right, out=out)
    _wait()
    return 2 * left.shape[0] ** 3 * repeats / (time.perf_counter() - began)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    print(gemm_rate())
