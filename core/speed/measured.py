"""Measured rates beside the forecast: what they correct, how far off it was, and how busy the card really is."""

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

LEAST_BAND = 0.05
"""Two runs of the same job differ by as much: clocks, other users of the machine, other rows."""
CLOSE = 0.03
"""Share within which a forecast counts as right."""


class Measurement(NamedTuple):
    """Tokens per second of a past run, as forecast and as measured."""

    predicted: float
    measured: float


def calibrated(speed: Speed, measurements: Sequence[Measurement]) -> Speed:
    """A forecast corrected by past runs of the same card, model size, stage and method; as it was if there are none.

    Scaled by the median of measured / predicted. The band is as wide as they disagree about it, and half the usual one
    for a single run.
    """
    ratios = [
        each.measured / each.predicted
        for each in measurements
        if each.measured > 0 and each.predicted > 0
    ]
    if not ratios:
        return speed
    ratio = median(ratios)
    spread = max(abs(each / ratio - 1) for each in ratios)
    band = BAND / 2 if len(ratios) == 1 else max(LEAST_BAND, spread)
    return replace(
        speed,
        tokens_per_second=speed.tokens_per_second * ratio,
        seconds_per_step=speed.seconds_per_step / ratio,
        hours=speed.hours / ratio if speed.hours is not None else None,
        usd=speed.usd / ratio if speed.usd is not None else None,
        low_factor=1 - min(band, 0.9),
        high_factor=1 + band,
        num_measured=len(ratios),
    )


def error_of(predicted: float, measured: float) -> str:
    """How far a forecast in tokens per second was off, as a sentence. Raises ValueError for a rate that is not above 0.

    `12 % slower than forecast: 3,430 tokens/s instead of 3,900.`
    """
    if not (predicted > 0 and measured > 0):
        raise ValueError(f"rates are above 0, not {predicted} and {measured}")
    error = measured / predicted - 1
    if abs(error) < CLOSE:
        return f"As forecast: {measured:,.0f} tokens/s."
    way = "faster" if error > 0 else "slower"
    return f"{100 * abs(error):.0f} % {way} than forecast: {measured:,.0f} tokens/s instead of {predicted:,.0f}."


def model_flops_per_token(job: JobSpec, shape: ModelShape, row_tokens: float) -> float:
    """Floating-point operations that the mathematics of a token asks for, in a row of so many tokens.

    Two per weight forward, two for the gradient of its input, two where it trains; causal attention forward and twice
    as much backward. What a program computes again to save memory does not count, nor what an adapter adds (PaLM,
    appendix B).
    """
    passes, head = passes_of(job, shape), head_parameters(job, shape)
    through_layers = passes.forward + passes.input_gradient + passes.weight_gradient
    through_head = passes.forward + 1 + (not job.trains_adapter)
    attention = attention_flops_per_pass(shape, FLASH, row_tokens) * (
        passes.forward + 2 * passes.input_gradient
    )
    return 2 * (active_parameters(shape) * through_layers + head * through_head) + attention


def mfu(
    tokens_per_second: float, job: JobSpec, shape: ModelShape, gpu: Gpu, row_tokens: float
) -> float | None:
    """Model FLOP/s over the card's rated FLOP/s, 0 to 1; None for a CPU and for a card whose peak is unknown."""
    if gpu.compute_capability == (0, 0) or not gpu.flops:
        return None
    return tokens_per_second * model_flops_per_token(job, shape, row_tokens) / gpu.flops
