"""How fast this machine multiplies matrices: what a training's speed is a share of.

python benchmarks/gemm_rate.py    prints floating-point operations per second
"""

import time

import torch

SIZES = {"cuda": (8192, torch.bfloat16, 200), "cpu": (512, torch.float32, 20)}
"""Device -> numbers on a side, their type, how many products: a second of a large card at its full power."""
ROUNDS = 5


def gemm_rate() -> float:
    """Floating-point operations per second of products of large random matrices: the best of some rounds."""
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
