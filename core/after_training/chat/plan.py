"""Decide whether a chat fits on a device, with how many models, and how long it may be."""

from collections.abc import Sequence
from dataclasses import dataclass

from core.after_training.chat.errors import ChatError
from core.after_training.chat.sides import ChatModel, ChatSide, models_of
from core.after_training.export.tools import TO_INSTALL
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


BYTES_OF_NUMBER = 2
LLAMA_BYTES = 256 * 2**20
"""Scratch space of llama.cpp, which grows with the vocabulary."""


@dataclass(frozen=True)
class ChatPlan:
    """Models of a chat, and the memory that they may take."""

    sides: tuple[ChatSide, ...]
    models: tuple[ChatModel, ...]
    places: tuple[int, ...]
    """Place among the models of each side."""
    device: int
    num_loaded: int
    """Models of transformers that are loaded at the same time; exported ones all are."""
    num_tokens: int
    """Longest conversation, answer included."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what users should know before they ask."""
        num_trained = sum(model.gguf is None for model in self.models)
        if self.num_loaded < num_trained:
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
    _require_tools(sides)
    models, places = models_of(sides)
    needs = _Needs(models, local_gpu(index=device))
    longest = min([MAX_TOKENS, *map(_positions, needs.shapes)])
    room = _room(device)
    missing: Problem | None = None
    for num_loaded in sorted({needs.num_trained, min(needs.num_trained, 1)}, reverse=True):
        least = GOOD_TOKENS if num_loaded > 1 else MIN_TOKENS
        num_tokens = longest
        while num_tokens >= min(least, longest):
            missing = room.missing(needs.memory(num_tokens, num_loaded), sides)
            if missing is None:
                chosen = tuple(sides)
                return ChatPlan(chosen, models, places, device, num_loaded, num_tokens)
            num_tokens //= 2
    assert missing
    raise ChatError(missing)


def _require_tools(sides: Sequence[ChatSide]) -> None:
    """Raise ChatError for an exported file that nothing here can answer with."""
    for side in sides:
        if side.gguf and side.tools is None:
            problem = f"{side.key} is answered by llama.cpp, which is not installed"
            raise ChatError(Problem("chat", problem, TO_INSTALL))


@dataclass(frozen=True)
class _Memory:
    """Bytes that a chat takes."""

    device_bytes: int
    """Of models that transformers loads."""
    host_bytes: int
    """Of exported files, which llama.cpp answers with on the processor."""


@dataclass(frozen=True)
class _Room:
    """Bytes that are free."""

    device_name: str
    device_bytes: int
    host_bytes: int
    is_one: bool
    """True on a machine without a card, where both are the same memory."""

    def missing(self, memory: _Memory, sides: Sequence[ChatSide]) -> Problem | None:
        """Return why a chat does not fit; None if it does."""
        name = sides[0].label if len(sides) == 1 else "the larger model"
        fix = "end what uses its memory, or choose a smaller model or a qlora run"
        needed, free, place = memory.device_bytes, self.device_bytes, self.device_name
        if self.is_one:
            needed += memory.host_bytes
        elif memory.host_bytes > self.host_bytes:
            needed, free, place = memory.host_bytes, self.host_bytes, "this machine"
            name, fix = "the exported file", "close other programs, or choose a smaller file"
        if needed <= free:
            return None
        problem = f"{name} needs about {gib(needed)} to answer, {gib(free)} is free on {place}"
        return Problem("chat", problem, fix)


class _Needs:
    """Memory of the models of a chat. One of unknown architecture counts as nothing."""

    def __init__(self, models: Sequence[ChatModel], gpu: Gpu) -> None:
        self._models = models
        self._gpu = gpu
        self.shapes = [find_model(reference_of(model.job.model)).shape for model in models]

    @property
    def num_trained(self) -> int:
        """Models that transformers loads."""
        return sum(model.gguf is None for model in self._models)

    def memory(self, num_tokens: int, num_loaded: int) -> _Memory:
        """Return what conversations of this length take, with so many models loaded."""
        memories: list[AnsweringMemory] = []
        host_bytes = 0
        for model, shape in zip(self._models, self.shapes, strict=True):
            if model.gguf:
                host_bytes += model.gguf.stat().st_size + _cache_bytes(shape, num_tokens)
            elif shape is not None:
                memories.append(memory_to_answer(model.job, shape, self._gpu, num_tokens))
        if not memories:
            return _Memory(0, host_bytes)
        if num_loaded == 1:
            return _Memory(max(memory.total_bytes for memory in memories), host_bytes)
        loaded = sum(memory.loaded_bytes for memory in memories)
        used = max(memory.working_bytes + memory.context_bytes for memory in memories)
        return _Memory(loaded + used, host_bytes)


def _cache_bytes(shape: ModelShape | None, num_tokens: int) -> int:
    """Return what llama.cpp takes for keys and values in 16 bits, and for its scratch space."""
    if shape is None:
        return LLAMA_BYTES
    per_token = 2 * shape.num_hidden_layers * shape.num_key_value_heads * shape.head_dim
    return LLAMA_BYTES + num_tokens * per_token * BYTES_OF_NUMBER


def _positions(shape: ModelShape | None) -> int:
    return shape.max_position_embeddings if shape else MAX_TOKENS


def _room(device: int) -> _Room:
    machine = this_machine()
    card = card_of(device, machine)
    name, host = local_gpu(index=device).name, machine.ram_available_bytes
    if card is None:
        return _Room(name, host, host, is_one=True)
    return _Room(name, card.free_bytes, host, is_one=False)
