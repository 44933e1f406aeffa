"""Time that a model takes to draw the answers which online stages train on."""

from core.job import JobSpec
from core.models import Gpu, ModelShape
from core.speed.work import active_parameters, linear_parameters, stored_bytes
from core.training.contract.stages import STAGES

HOST_SECONDS_PER_LAYER = 0.03 / 32
"""To launch one token of a batch through a layer with an adapter. Assumed from some 30 tokens a
second and sequence, which `generate` of Transformers draws from a 7B model on any card."""
BATCH_THAT_USES_ALL_EXPERTS = 256
"""From about this many answers at once, some token is routed to every expert of a mixture."""


def generation_seconds(job: JobSpec, shape: ModelShape, gpu: Gpu, prompt_tokens: float) -> float:
    """Return the seconds to draw the answers of an optimizer step; 0 for stages that draw none.

    Each token reads every weight and the keys and values of all answers so far, so memory bandwidth
    is the limit, or the processor for a small model. Answers count with their maximum length.
    """
    if not STAGES[job.stage].generates:
        return 0.0
    # Keys and values, 16 bits each, of the prompt and on average half of the answer.
    num_cached = job.effective_batch_size * (prompt_tokens + job.max_completion_length / 2)
    key_value_bytes = 2 * 2 * shape.num_key_value_heads * shape.head_dim
    cache_bytes = num_cached * shape.num_hidden_layers * key_value_bytes
    read_bytes = _weight_bytes(job, shape, gpu) + cache_bytes
    seconds_per_token = max(
        read_bytes / gpu.memory_bandwidth_bytes_per_second,
        shape.num_hidden_layers * HOST_SECONDS_PER_LAYER,
    )
    return job.max_completion_length * seconds_per_token


def _weight_bytes(job: JobSpec, shape: ModelShape, gpu: Gpu) -> float:
    """Return the bytes moved to use each weight once; quantised ones are unpacked to 16 bits."""
    bytes_per_weight = stored_bytes(job, gpu)
    if bytes_per_weight < 2:
        bytes_per_weight += 2 + 2
    num_weights: float = linear_parameters(shape)
    if shape.num_experts > 1 and job.effective_batch_size < BATCH_THAT_USES_ALL_EXPERTS:
        num_weights = active_parameters(shape)
    return bytes_per_weight * num_weights + 2 * shape.hidden_size * shape.vocab_size
