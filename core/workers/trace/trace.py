"""Trace one job: from its model without storage to the peak memory of each phase."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from core.training.contract.job import Job
from core.training.contract.stages import STAGES
from core.training.model.load import ModelPrecision

from .allocation_log import AllocationLog
from .cuda import Card
from .depth import extrapolate
from .layers import DecoderLayers
from .loss import add_loss_head
from .model import empty_model, precision_on, prepare
from .optimizers import paged_bytes
from .ranks import RankTraining, group_of
from .step import TracedTraining

OnProgress = Callable[[float], None]
"""Function of the share that is done, from 0 to 1."""


def trace(
    job: Job, config: Mapping[str, Any], card: Card, evaluation_rows: int, on_progress: OnProgress
) -> dict[str, Any]:
    """Return the allocated peak of each phase of a job on a card, for a model of this config.json.

    Of several devices, it is that of rank 0. `log` and `sizes` are the allocations of the deepest
    model that was traced (AllocationLog); `peak_operations` names the operation at the peak of each
    of its segments.
    """
    began = time.monotonic()
    precision = precision_on(card, job)
    traced = _Traced(job, config, precision)
    kinds = traced.layers.kinds
    depths: list[int] = []

    def trace_layers(indices: Sequence[int]) -> AllocationLog:
        depths.append(len(indices))
        # several devices wrap a model, which can be done once
        each = traced if job.num_devices == 1 else _Traced(job, config, precision)
        training_class = TracedTraining if job.num_devices == 1 else RankTraining
        training = training_class(each.model, job, card, precision, evaluation_rows)
        log = training.run(each.layers.keep(indices))
        on_progress(min(1.0, len(depths) / (1 + len(set(kinds)))))
        return log

    with group_of(job.num_devices):
        phases, log = extrapolate(kinds, trace_layers)
    optim = job.optim.removeprefix("paged_") if card.is_cpu else job.optim
    return {
        "phases": phases,
        "peak_allocated_bytes": max(phases.values()),
        "num_parameters": traced.num_parameters,
        "num_trainable_parameters": sum(traced.trained),
        "paged_bytes": sum(paged_bytes(optim, numel) for numel in traced.trained),
        "log": log.events,
        "sizes": log.sizes,
        "peak_operations": {segment: peak.operation for segment, peak in log.peaks.items()},
        "depths": depths,
        "seconds": round(time.monotonic() - began, 2),
    }


class _Traced:
    """Model of a job on the meta device."""

    def __init__(self, job: Job, config: Mapping[str, Any], precision: ModelPrecision) -> None:
        base = empty_model(config, job, precision)
        self.num_parameters = base.num_parameters()
        self.layers = DecoderLayers(base)
        self.model = prepare(base, job, precision)
        add_loss_head(self.model, STAGES[job.stage])
        parameters = self.model.parameters()
        self.trained = [each.numel() for each in parameters if each.requires_grad]
        """Numbers of elements of the parameters that train."""
