"""Learning rates: settings of the schedules, a schedule that begins again, and LoRA+ groups."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from ..contract.failures import TrainingError
from ..contract.job import Job

Schedule = Callable[[int], float]
"""Step -> share of the learning rate."""


def schedule_settings(job: Job, num_steps: int, num_warmup_steps: int) -> dict[str, float]:
    """Return what the schedule of a job needs beside warm-up and steps, named as in transformers.

    Sources: get_polynomial_decay_schedule_with_warmup and others in transformers/optimization.py.
    Raises TrainingError for more warm-up steps than the run has.
    """
    # A run that was continued has fewer steps than the one whose warm-up it repeats.
    if job.warmup_steps >= num_steps and not job.lr_restart_step:
        raise TrainingError(
            f"warmup_steps: a run of {num_steps:,} steps would end before the warm-up of "
            f"{job.warmup_steps:,}: give fewer warm-up steps, or train longer."
        )
    if job.lr_scheduler_type == "polynomial":
        return {"lr_end": job.min_lr_rate * job.learning_rate, "power": job.lr_power}
    if job.lr_scheduler_type == "cosine_with_min_lr":
        return {"min_lr_rate": job.min_lr_rate}
    if job.lr_scheduler_type == "warmup_stable_decay":
        num_decay_steps = max(1, round(job.lr_decay_ratio * num_steps))
        num_decay_steps = min(num_decay_steps, num_steps - num_warmup_steps)
        return {"num_decay_steps": num_decay_steps, "min_lr_ratio": job.min_lr_rate}
    return {}


def join_schedules(first: Schedule, second: Schedule, restart_step: int) -> Schedule:
    """Return the first schedule up to a step, and the second from there on."""

    def joined(step: int) -> float:
        if step < restart_step:
            return first(step)
        return second(step - restart_step)

    return joined


def begin_restart(scheduler: Any, restart_step: int) -> None:
    """Set the learning rate of a second schedule's first step.

    A checkpoint at that step holds the last one of the first schedule, of a run that ended there.
    """
    scheduler = getattr(scheduler, "scheduler", scheduler)  # without accelerate's wrapper
    if not restart_step or scheduler.last_epoch != restart_step:
        return
    shares = [schedule(restart_step) for schedule in scheduler.lr_lambdas]
    rates = [rate * share for rate, share in zip(scheduler.base_lrs, shares, strict=True)]
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates


def split_groups(optimizer: Any, model: nn.Module, ratio: float) -> None:
    """Give the B matrices of an adapter groups of their own, with a multiple of the learning rate.

    Numbers that train beside them, such as the magnitudes of DoRA, learn as fast as they, as in
    PEFT's create_loraplus_optimizer. Must be called before the first step.
    """
    faster = {id(parameter) for parameter in _fast_parameters(model.named_parameters())}
    groups = []
    for group in optimizer.param_groups:
        slow = [each for each in group["params"] if id(each) not in faster]
        fast = [each for each in group["params"] if id(each) in faster]
        if slow:
            groups.append({**group, "params": slow})
        if fast:
            groups.append({**group, "params": fast, "lr": group["lr"] * ratio})
    optimizer.param_groups[:] = groups


def _fast_parameters(named: Iterable[tuple[str, nn.Parameter]]) -> Iterable[nn.Parameter]:
    return (each for name, each in named if ".lora_B." in name or each.ndim == 1)
