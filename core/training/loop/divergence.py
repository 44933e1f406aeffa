"""Detect a training that has diverged, from the loss and the gradient norm of its steps.

Reading a number from a GPU waits for all work before it. So the numbers of a step are sent to the
CPU when it ends and read when the next step has ended: the GPU never idles, and a diverged training
ends one step later.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch.distributed.tensor import DTensor

STEPS_TO_BE_SURE = 3
STEPS_TO_SCALE_DOWN = 20
"""A gradient scaler skips steps while it lowers its scale: starting at 65536 it reaches 1 after 17
skips."""
STEPS_WITHOUT_GRADIENT = 5
STEPS_WITHOUT_ADVANTAGE = 50
"""In online stages a step has no gradient if all answers to its prompts were equally good."""
STEPS_TO_COMPARE = 10
NATS_ABOVE_START = 10.0
"""Uniform guessing has a loss of ln(vocabulary), 12 at most. A loss this far above the start is
beyond guessing."""


@dataclass(frozen=True)
class StepStats:
    """Loss and gradient norm of one optimizer step."""

    step: int
    loss: float
    grad_norm: float
    """Norm before clipping."""


@dataclass(frozen=True)
class _Transfer:
    """Numbers of a step on their way from the device to the CPU."""

    step: int
    loss_and_grad_norm: torch.Tensor
    is_done: torch.cuda.Event | None


class DivergenceMonitor:
    """Recent steps, and a diagnosis of them."""

    def __init__(self, *, has_scaler: bool = False, generates: bool = False):
        """`has_scaler`: gradients are scaled (float16). `generates`: the stage learns from
        generated answers."""
        self.max_overflow_steps = STEPS_TO_SCALE_DOWN if has_scaler else STEPS_TO_BE_SURE
        self.max_zero_steps = STEPS_WITHOUT_ADVANTAGE if generates else STEPS_WITHOUT_GRADIENT
        self._recent: deque[StepStats] = deque(maxlen=STEPS_WITHOUT_ADVANTAGE)
        self._first_losses: list[float] = []
        self._losses: list[torch.Tensor] = []
        self._grad_norm: torch.Tensor | float | None = None
        self._transfer: _Transfer | None = None

    # During a step

    def begin_step(self) -> None:
        """Forget the micro-batches of a step that did not end."""
        self._losses.clear()

    def add_loss(self, loss: torch.Tensor) -> None:
        """Add the loss of one micro-batch; those of a step add up to its loss."""
        self._losses.append(loss)

    def set_grad_norm(self, grad_norm: torch.Tensor | float) -> None:
        """Set the gradient norm of the step, before clipping."""
        self._grad_norm = whole(grad_norm)

    def end_step(self, step: int) -> None:
        """Send the numbers of a step to the CPU, without waiting for them."""
        losses = self._losses
        self._losses = []
        if not losses or self._grad_norm is None:
            return
        loss = torch.stack(losses).sum().detach().float()
        grad_norm = torch.as_tensor(self._grad_norm).detach().float().to(loss.device)
        pair = torch.stack([loss, grad_norm])
        is_done = torch.cuda.Event() if pair.is_cuda else None
        self._transfer = _Transfer(step, pair.to("cpu", non_blocking=True), is_done)
        if is_done:
            is_done.record()

    # Between steps

    def receive(self) -> None:
        """Take in the numbers that were sent at the end of the step before."""
        if self._transfer is None:
            return
        if self._transfer.is_done:
            self._transfer.is_done.synchronize()
        loss, grad_norm = self._transfer.loss_and_grad_norm.tolist()
        self.add(StepStats(self._transfer.step, loss, grad_norm))
        self._transfer = None

    def add(self, stats: StepStats) -> None:
        """Add the numbers of one step."""
        self._recent.append(stats)
        if len(self._first_losses) < STEPS_TO_COMPARE and math.isfinite(stats.loss):
            self._first_losses.append(stats.loss)

    def diagnosis(self) -> str:
        """Return what is wrong, in one sentence; "" if nothing is."""
        for check in CHECKS:
            sentence = check(self)
            if sentence:
                return sentence
        return ""

    def first_of_last(self, steps: int, is_bad: Callable[[StepStats], bool]) -> StepStats | None:
        """Return the first of the last `steps` steps if all of them were bad, else None."""
        last = list(self._recent)[-steps:]
        if len(last) == steps and all(is_bad(stats) for stats in last):
            return last[0]
        return None

    @property
    def first_loss(self) -> float:
        """Mean loss of the first steps; 0 before there is one."""
        return sum(self._first_losses) / max(1, len(self._first_losses))


def _check_loss(monitor: DivergenceMonitor) -> str:
    bad = monitor.first_of_last(STEPS_TO_BE_SURE, lambda stats: not math.isfinite(stats.loss))
    return f"from step {bad.step} on the loss is not a number" if bad else ""


def _check_overflow(monitor: DivergenceMonitor) -> str:
    bad = monitor.first_of_last(
        monitor.max_overflow_steps, lambda stats: not math.isfinite(stats.grad_norm)
    )
    if bad is None:
        return ""
    return f"from step {bad.step} on the gradient is not a number, while the loss is {bad.loss:.3g}"


def _check_zero_gradient(monitor: DivergenceMonitor) -> str:
    bad = monitor.first_of_last(monitor.max_zero_steps, lambda stats: stats.grad_norm == 0)
    return f"from step {bad.step} on there is no gradient, so nothing is learned" if bad else ""


def _check_explosion(monitor: DivergenceMonitor) -> str:
    first = monitor.first_loss
    limit = max(first + NATS_ABOVE_START, 4 * abs(first))
    bad = monitor.first_of_last(STEPS_TO_COMPARE, lambda stats: stats.loss > limit)
    if bad is None:
        return ""
    return f"from step {bad.step} on the loss is above {limit:.3g}; it began at {first:.3g}"


CHECKS: tuple[Callable[[DivergenceMonitor], str], ...] = (
    _check_loss,
    _check_overflow,
    _check_zero_gradient,
    _check_explosion,
)


def part_here(tensor: torch.Tensor) -> torch.Tensor:
    """Return the part of a tensor that this rank holds: all of it, unless it is sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(value: torch.Tensor | float) -> torch.Tensor | float:
    """Return a number that is computed over all ranks as a plain tensor."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def are_finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Return True if every element of tensors on one device is finite. Needs no memory of a
    tensor's size."""
    parts = (part_here(tensor.detach()) for tensor in tensors)
    largest = [torch.linalg.vector_norm(part, math.inf).float() for part in parts if part.numel()]
    return not largest or bool(torch.stack(largest).isfinite().all())
