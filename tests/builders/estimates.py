"""Cards, model shapes and jobs for tests of the memory estimate."""

from collections.abc import Mapping

from core.job import JobSpec
from core.memory import MemoryEstimate, estimate
from core.memory.program import OPTIMIZERS
from core.models import Gpu, ModelShape
from core.training.contract.methods import METHODS

MIB, GIB = 2**20, 2**30
SMALL = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
SIZES = ("peak_allocated_bytes", "peak_reserved_bytes", "total_bytes", "low_bytes", "high_bytes")
"""Fields of an estimate that grow with a job."""
METHODS_AND_OPTIMIZERS = [
    (method.id, optim)
    for method in METHODS.values()
    for optim, record in OPTIMIZERS.items()
    if not (method.trains_adapter and record.projection_rank)
]
"""Methods and the optimizers that train them: a projection to a low rank suits no adapter."""


def card(compute_capability: tuple[int, int] = (9, 0), capacity_bytes: int = 80 * GIB) -> Gpu:
    """Return a GPU; (0, 0) stands for a CPU."""
    return Gpu(
        id="card",
        name="Card",
        capacity_bytes=capacity_bytes,
        compute_capability=compute_capability,
        supports_bf16=compute_capability >= (8, 0),
        memory_bandwidth_bytes_per_second=1e12,
        flops=1e14,
        usd_per_hour=None,
        sources=(),
    )


def llama(**config: object) -> ModelShape:
    """Return a Llama of a billion parameters, or with other sizes."""
    sizes = {
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
    }
    return ModelShape.from_config(sizes | config)


def gemma3(num_hidden_layers: int = 26) -> ModelShape:
    """Return a Gemma 3, five of whose six layers attend within a window."""
    return ModelShape.from_config(
        {
            "model_type": "gemma3_text",
            "hidden_size": 1152,
            "intermediate_size": 6912,
            "num_hidden_layers": num_hidden_layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "vocab_size": 262144,
            "max_position_embeddings": 32768,
            "sliding_window": 512,
        }
    )


LLAMA, SMALL_LLAMA = llama(), llama(**SMALL)
GPU, T4, CPU = card(), card((7, 5)), card((0, 0))


def predict(shape: ModelShape = LLAMA, gpu: Gpu = GPU, **fields: object) -> MemoryEstimate:
    """Return the estimate of a job with these fields."""
    return estimate(JobSpec.parse(fields), shape, gpu)


def stage_job(stage: str, method: str = "lora", **fields: object) -> JobSpec:
    """Return a job of this stage with 8 rows a step, the number of answers to one prompt."""
    usual = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "max_length": 1024}
    return JobSpec.parse({**usual, "stage": stage, "method": method, **fields})


def predict_stage(stage: str, method: str = "lora", **fields: object) -> MemoryEstimate:
    """Return the estimate of `stage_job`."""
    return estimate(stage_job(stage, method, **fields), LLAMA, GPU)


def component_bytes(found: MemoryEstimate) -> Mapping[str, int]:
    """Return the bytes of each component at the peak."""
    return {part.name: part.bytes for part in found.components}


def assert_no_lower(more: MemoryEstimate, less: MemoryEstimate) -> None:
    """Assert that no size of an estimate is below that of another."""
    for name in SIZES:
        assert getattr(more, name) >= getattr(less, name), name
