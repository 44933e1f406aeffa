"""Memory of a program that answers with a model: weights, adapter, cache and libraries."""

from dataclasses import dataclass, replace

from core.job import JobSpec
from core.memory.context import context_of
from core.memory.ops import generate
from core.memory.program import Generation, program_of
from core.memory.resident import load
from core.memory.several_devices import Gathers
from core.memory.simulator import AutogradGraph, DeviceMemory
from core.models import Gpu, ModelShape
from core.training.contract.stages import DEFAULT_STAGE

ANSWER_SHARE = 4
"""One of so many tokens of a conversation are those of its last answer."""


@dataclass(frozen=True)
class AnsweringMemory:
    """Bytes that a program takes while it answers."""

    loaded_bytes: int
    """Weights and adapter."""
    working_bytes: int
    """Cache of keys and values, and what one pass over the conversation needs."""
    context_bytes: int
    """CUDA context, or Python and its libraries."""

    @property
    def total_bytes(self) -> int:
        return self.loaded_bytes + self.working_bytes + self.context_bytes


def memory_to_answer(job: JobSpec, shape: ModelShape, gpu: Gpu, num_tokens: int) -> AnsweringMemory:
    """Return the memory of answering with the model of a job, in conversations of so many tokens.

    The model is loaded as the job trains it, such as in 4 bits. Raises SpecError for a job that the
    model does not support.
    """
    changes = {
        "stage": DEFAULT_STAGE,
        "max_length": min(num_tokens, shape.max_position_embeddings),
        "num_devices": 1,  # one device answers, also where several have trained
    }
    program = program_of(job.model_copy(update=changes), shape, gpu)
    program = replace(program, checkpointing=False)
    kinds = program.layer_kinds()
    memory = DeviceMemory()
    memory.enter("load")
    load(program, kinds, memory)
    loaded = memory.live_bytes
    num_answered = max(1, num_tokens // ANSWER_SHARE)
    generation = Generation(1, max(1, num_tokens - num_answered), num_answered)
    graph = AutogradGraph(memory)
    generate(program, generation, kinds, graph, Gathers(program, graph))
    peak = max(scope.num_bytes for scope in memory.peaks.values())
    return AnsweringMemory(loaded, peak - loaded, context_of(gpu).expected_bytes)
