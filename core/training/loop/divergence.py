"""Whether a training still learns: its loss and its gradient, step by step. Decides nothing about checkpoints.

Reading a number from a GPU waits for all work before it. So a step's numbers are sent on their way when it ends and
read when the next one has: the GPU never idles for them, and a training that has diverged ends one step later.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

STEPS_TO_BE_SURE = 3
STEPS_TO_SCALE_DOWN = 20
"""A gradient scaler skips steps while it searches its scale: from 65536 down it has had enough after 17."""
STEPS_WITHOUT_GRADIENT = 5
STEPS_WITHOUT_ADVANTAGE = 50
"""Where answers are drawn, a step without a gradient is one whose answers were all equally good."""
STEPS_TO_COMPARE = 10
NATS_ABOVE_START = 10.0
"""A model that guesses blindly has a loss of ln(vocabulary), 12 at most: far above a start is out of its mind."""


@dataclass(frozen=True)
class Beat:
    """One optimizer step."""

    step: int
    loss: float
    grad_norm: float
    """Before clipping."""


class Health:
    """Remembers the last steps, and says what is wrong with them."""

    def __init__(self, *, has_scaler: bool = False, draws_answers: bool = False):
        self.patience_with_overflow = STEPS_TO_SCALE_DOWN if has_scaler else STEPS_TO_BE_SURE
        self.patience_with_stillness = (
            STEPS_WITHOUT_ADVANTAGE if draws_answers else STEPS_WITHOUT_GRADIENT
        )
        self.beats: deque[Beat] = deque(maxlen=STEPS_WITHOUT_ADVANTAGE)
        self._first_losses: list[float] = []
        self._sent: tuple[int, torch.Tensor, torch.cuda.Event | None] | None = None

    def send(self, step: int, loss: torch.Tensor, grad_norm: torch.Tensor) -> None:
        """Sends a step's numbers on their way from the device."""
        pair = torch.stack([loss.detach().float(), grad_norm.detach().float().to(loss.device)])
        has_arrived = torch.cuda.Event() if pair.is_cuda else None
        self._sent = step, pair.to("cpu", non_blocking=True), has_arrived
        if has_arrived:
            has_arrived.record()

    def receive(self) -> None:
        """Takes in what was sent when the step before ended."""
        if self._sent is not None:
            (step, pair, has_arrived), self._sent = self._sent, None
            if has_arrived:
                has_arrived.synchronize()
            loss, grad_norm = pair.tolist()
            self.add(Beat(step, loss, grad_norm))

    def add(self, beat: Beat) -> None:
        """Takes in one step."""
        self.beats.append(beat)
        if len(self._first_losses) < STEPS_TO_COMPARE and math.isfinite(beat.loss):
            self._first_losses.append(beat.loss)

    def complaint(self) -> str:
        """What is wrong, in one sentence; empty while the training is well."""
        return next((words for ailment in AILMENTS if (words := ailment(self))), "")

    def lasts(self, steps: int, is_bad: Callable[[Beat], bool]) -> Beat | None:
        """The first of the last `steps` steps if all of them were bad."""
        last = list(self.beats)[-steps:]
        return last[0] if len(last) == steps and all(map(is_bad, last)) else None

    @property
    def start(self) -> float:
        """The mean loss of the first steps."""
        return sum(self._first_losses) / max(1, len(self._first_losses))


def _lost_loss(health: Health) -> str:
    bad = health.lasts(STEPS_TO_BE_SURE, lambda beat: not math.isfinite(beat.loss))
    return f"from step {bad.step} on the loss is no number" if bad else ""


def _lost_gradient(health: Health) -> str:
    bad = health.lasts(
        health.patience_with_overflow, lambda beat: not math.isfinite(beat.grad_norm)
    )
    return (
        f"from step {bad.step} on the gradient is no number, while the loss is {bad.loss:.3g}"
        if bad
        else ""
    )


def _no_gradient(health: Health) -> str:
    bad = health.lasts(health.patience_with_stillness, lambda beat: beat.grad_norm == 0)
    return f"from step {bad.step} on there is no gradient, so nothing is learnt" if bad else ""


def _explosion(health: Health) -> str:
    limit = max(health.start + NATS_ABOVE_START, 4 * abs(health.start))
    bad = health.lasts(STEPS_TO_COMPARE, lambda beat: beat.loss > limit)
    return (
        f"from step {bad.step} on the loss is above {limit:.3g}; it began at {health.start:.3g}"
        if bad
        else ""
    )


AILMENTS: tuple[Callable[[Health], str], ...] = (
    _lost_loss,
    _lost_gradient,
    _no_gradient,
    _explosion,
)


def are_numbers(tensors: Iterable[torch.Tensor]) -> bool:
    """True if every element of tensors on one device is finite. Needs no memory of the size of a tensor."""
    largest = [
        torch.linalg.vector_norm(tensor.detach(), math.inf).float()
        for tensor in tensors
        if tensor.numel()
    ]
    return not largest or bool(torch.stack(largest).isfinite().all())
