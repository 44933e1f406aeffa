"""Measured rates of past runs: what they correct in a forecast, and how busy the card was."""

from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import NamedTuple

from core.job import JobSpec
from core.models import Gpu, ModelShape
from core.speed.forecast import BAND, Speed
from core.speed.kernels import FLASH
from core.speed.passes import passes_of
from core.speed.work import active_parameters, attention_flops_per_pass, head_parameters

MIN_BAND = 0.05
"""Two runs of the same job differ by as much: clocks, other users of the machine, other rows."""


class Measurement(NamedTuple):
    """Tokens per second of a past run, predicted and measured."""

    predicted: float
    measured: float


def calibrated(speed: Speed, measurements: Sequence[Measurement]) -> Speed:
    """Return a forecast corrected by past runs of the same card, model size, stage and method.

    The rate is scaled by the median of measured / predicted. The band is as wide as the runs differ
    from it, and half the usual one for a single run.
    """
    ratios = [
        each.measured / each.predicted
        for each in measurements
        if each.measured > 0 and each.predicted > 0
    ]
    if not ratios:
        return speed
    ratio = median(ratios)
    band = BAND / 2
    if len(ratios) > 1:
        band = max(MIN_BAND, *(abs(each / ratio - 1) for each in ratios))
    return replace(
        speed,
        tokens_per_second=speed.tokens_per_second * ratio,
        seconds_per_step=speed.seconds_per_step / ratio,
        hours=speed.hours and speed.hours / ratio,
        usd=speed.usd and speed.usd / ratio,
        band=band,
        num_measured=len(ratios),
    )


def model_flops_per_token(job: JobSpec, shape: ModelShape, row_tokens: float) -> float:
    """Return the FLOPs that the mathematics of a token needs, in a row of `row_tokens`.

    Two per weight forward, two for the gradient of its input, two where it trains; causal attention
    forward and twice as much backward. Recomputation and adapters do not count (PaLM, appendix B).
    """
    passes = passes_of(job, shape)
    layers = passes.forward + passes.input_gradient + passes.weight_gradient
    head = passes.forward + 1
    if not job.trains_adapter:
        head += 1
    linear = active_parameters(shape) * layers + head_parameters(job, shape) * head
    attention_passes = passes.forward + 2 * passes.input_gradient
    return 2 * linear + attention_passes * attention_flops_per_pass(shape, FLASH, row_tokens)


def mfu(
    tokens_per_second: float, job: JobSpec, shape: ModelShape, gpu: Gpu, row_tokens: float
) -> float | None:
    """Return model FLOP/s over rated FLOP/s, 0 to 1; None on a CPU or an unknown card."""
    if gpu.compute_capability == (0, 0) or not gpu.flops:
        return None
    return tokens_per_second * model_flops_per_token(job, shape, row_tokens) / gpu.flops
