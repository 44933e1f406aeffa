"""Decide whether a chat fits on a device, with how many models, and how long it may be."""

from collections.abc import Sequence
from dataclasses import dataclass

from core.after_training.chat.errors import ChatError
from core.after_training.chat.sides import ChatModel, ChatSide, models_of
from core.device import card_of, local_gpu, this_machine
from core.job import Problem
from core.memory.answering import AnsweringMemory, memory_to_answer
from core.models import Gpu, ModelShape, find_model
from core.resolve import reference_of
from core.training.contract.failures import gib

MAX_TOKENS = 32768
"""Longest conversation that is planned for. Longer ones would only reserve memory."""
MIN_TOKENS = 512
GOOD_TOKENS = 2048
"""Two models are kept together only if conversations of this length still fit."""


@dataclass(frozen=True)
class ChatPlan:
    """Models of a chat, and the memory that they may take."""

    sides: tuple[ChatSide, ...]
    models: tuple[ChatModel, ...]
    places: tuple[int, ...]
    """Place among the models of each side."""
    device: int
    num_loaded: int
    """Models that are loaded at the same time."""
    num_tokens: int
    """Longest conversation, answer included."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what users should know before they ask."""
        if self.num_loaded < len(self.models):
            return (
                "Both models do not fit on the device together, so they are loaded one after the "
                "other for each message.",
            )
        return ()


def plan_chat(sides: Sequence[ChatSide], device: int = 0) -> ChatPlan:
    """Return how these sides can answer on a device now.

    A model of unknown architecture is not estimated. Raises ChatError if even one model with a
    short conversation does not fit beside what the device holds, SpecError for a missing device.
    """
    models, places = models_of(sides)
    gpu = local_gpu(index=device)
    shapes = [find_model(reference_of(model.job.model)).shape for model in models]
    longest = min([MAX_TOKENS, *(_positions(shape) for shape in shapes)])
    free = _free_bytes(device)
    for num_loaded in sorted({len(models), 1}, reverse=True):
        least = GOOD_TOKENS if num_loaded > 1 else MIN_TOKENS
        num_tokens = longest
        while num_tokens >= min(least, longest):
            needed = _needed_bytes(models, shapes, gpu, num_tokens, num_loaded)
            if needed <= free:
                chosen = tuple(sides)
                return ChatPlan(chosen, models, places, device, num_loaded, num_tokens)
            num_tokens //= 2
    name = sides[0].label if len(sides) == 1 else "the larger model"
    problem = f"{name} needs about {gib(needed)} to answer, {gib(free)} is free on {gpu.name}"
    fix = "end what uses its memory, or choose a smaller model or a qlora run"
    raise ChatError(Problem("chat", problem, fix))


def _needed_bytes(
    models: Sequence[ChatModel],
    shapes: Sequence[ModelShape | None],
    gpu: Gpu,
    num_tokens: int,
    num_loaded: int,
) -> int:
    """Return what the chat takes; a model of unknown architecture counts as nothing."""
    memories: list[AnsweringMemory] = []
    for model, shape in zip(models, shapes, strict=True):
        if shape is not None:
            memories.append(memory_to_answer(model.job, shape, gpu, num_tokens))
    if not memories:
        return 0
    if num_loaded == 1:
        return max(memory.total_bytes for memory in memories)
    loaded = sum(memory.loaded_bytes for memory in memories)
    return loaded + max(memory.working_bytes + memory.context_bytes for memory in memories)


def _positions(shape: ModelShape | None) -> int:
    return shape.max_position_embeddings if shape else MAX_TOKENS


def _free_bytes(device: int) -> int:
    machine = this_machine()
    card = card_of(device, machine)
    return card.free_bytes if card else machine.ram_available_bytes
