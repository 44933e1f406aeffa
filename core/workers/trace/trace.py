"""Trace one job: from its model without storage to the peak memory of each phase."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from core.training.contract.job import Job
from core.training.contract.stages import STAGES

from .allocation_log import AllocationLog
from .cuda import Card
from .depth import extrapolate
from .layers import DecoderLayers
from .loss import add_loss_head
from .model import empty_model, precision_on, prepare
from .optimizers import paged_bytes
from .step import TracedTraining

OnProgress = Callable[[float], None]
"""Function of the share that is done, from 0 to 1."""


def trace(
    job: Job, config: Mapping[str, Any], card: Card, evaluation_rows: int, on_progress: OnProgress
) -> dict[str, Any]:
    """Return the allocated peak of each phase of a job on a card, for a model of this config.json.

    `log` and `sizes` are the allocations of the deepest model that was traced (AllocationLog);
    `peak_operations` names the operation at the peak of each of its segments.
    """
    began = time.monotonic()
    precision = precision_on(card, job)
    base = empty_model(config, job, precision)
    num_parameters = base.num_parameters()
    layers = DecoderLayers(base)
    model = prepare(base, job, precision)
    add_loss_head(model, STAGES[job.stage])
    trained = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    optim = job.optim.removeprefix("paged_") if card.is_cpu else job.optim
    kinds = layers.kinds
    depths: list[int] = []

    def trace_layers(indices: Sequence[int]) -> AllocationLog:
        depths.append(len(indices))
        log = TracedTraining(model, job, card, precision, evaluation_rows).run(layers.keep(indices))
        on_progress(min(1.0, len(depths) / (1 + len(set(kinds)))))
        return log

    phases, log = extrapolate(kinds, trace_layers)
    return {
        "phases": phases,
        "peak_allocated_bytes": max(phases.values()),
        "num_parameters": num_parameters,
        "num_trainable_parameters": sum(trained),
        "paged_bytes": sum(paged_bytes(optim, numel) for numel in trained),
        "log": log.events,
        "sizes": log.sizes,
        "peak_operations": {segment: peak.operation for segment, peak in log.peaks.items()},
        "depths": depths,
        "seconds": round(time.monotonic() - began, 2),
    }
