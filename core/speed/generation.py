"""How long a model takes to draw the answers that it is then trained on."""

from core.job import JobSpec
from core.models import Gpu, ModelShape
from core.speed.work import active_parameters, linear_parameters, stored_bytes
from core.training.contract.stages import STAGES

HOST_SECONDS_PER_LAYER = 0.03 / 32
"""To launch one token of a batch through a layer with an adapter. Assumed from some 30 tokens a second and sequence, as
`generate` of Transformers draws them from a 7B model whatever the card."""
MANY_TOKENS = 256
"""From about as many answers at once on, every expert of a mixture is asked by some of them."""


def generation_seconds(job: JobSpec, shape: ModelShape, gpu: Gpu, prompt_tokens: float) -> float:
    """Seconds in which all answers of an optimizer step are drawn at once, token by token; 0 for other stages.

    Each token reads every weight, and the keys and values of all answers so far: memory bandwidth decides, or the
    processor for a small model. Answers are taken to be as long as they may be.
    """
    if not STAGES[job.stage].generates:
        return 0.0
    kept_tokens = job.effective_batch_size * (prompt_tokens + job.max_completion_length / 2)
    read_bytes = _weight_bytes(job, shape, gpu) + kept_tokens * cache_bytes_per_token(shape)
    per_token = read_bytes / gpu.memory_bandwidth_bytes_per_second
    return job.max_completion_length * max(
        per_token, shape.num_hidden_layers * HOST_SECONDS_PER_LAYER
    )


def cache_bytes_per_token(shape: ModelShape) -> int:
    """Keys and values of a token in every layer, 16 bits wide."""
    return 2 * 2 * shape.num_hidden_layers * shape.num_key_value_heads * shape.head_dim


def _weight_bytes(job: JobSpec, shape: ModelShape, gpu: Gpu) -> float:
    """Bytes moved to multiply every weight once: a quantised one is unpacked to 16 bits first, written and read."""
    stored = stored_bytes(job, gpu)
    per_weight = stored + (4 if stored < 2 else 0)
    is_sparse = shape.num_experts > 1 and job.effective_batch_size < MANY_TOKENS
    layers = active_parameters(shape) if is_sparse else linear_parameters(shape)
    return per_weight * layers + 2 * shape.hidden_size * shape.vocab_size
