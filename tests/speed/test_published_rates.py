"""Forecasts against training rates that others measured and published."""

from dataclasses import dataclass

import pytest

from core.models import ModelShape
from core.speed import BAND
from tests.builders.forecasts import LLAMA_2_7B, LLAMA_3B, LLAMA_8B, predict


@dataclass(frozen=True)
class Published:
    """Measured rate, in tokens per second."""

    model: str
    gpu: str
    tokens_per_second: float
    fields: dict[str, object]


def first_qwen(hidden: int, intermediate: int, layers: int, heads: int, vocab: int) -> ModelShape:
    """Return the shape of a first Qwen: layers like Llama's, as many key heads as query heads."""
    return ModelShape.from_config(
        {
            "model_type": "llama",
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "max_position_embeddings": 32768,
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "vocab_size": vocab,
        }
    )


FIRST_QWEN = {
    "Qwen-7B": first_qwen(4096, 11008, 32, 32, 151936),
    "Qwen-14B": first_qwen(5120, 13696, 40, 40, 152064),
}


def torchtune(model: str, gpu: str, rate: float, **fields: object) -> Published:
    """pytorch/torchtune README.md: packed rows, two at once, FlashAttention, compiled by
    default."""
    usual = {
        "attn_implementation": "flash_attention_2",
        "torch_compile": True,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
    }
    return Published(model, gpu, rate, usual | fields)


def torchtune_full(rate: float, **fields: object) -> Published:
    usual = {"method": "full", "max_length": 4096, "gradient_checkpointing": False}
    return torchtune(LLAMA_3B, "a100-80gb", rate, **(usual | fields))


def nemo(model: str, rate: float) -> Published:
    """NVIDIA-NeMo/Automodel docs/performance-summary.mdx: LoRA without checkpointing, 2 x 4096."""
    fields = {
        "attn_implementation": "flash_attention_2",
        "gradient_checkpointing": False,
        "max_length": 4096,
    }
    return Published(model, "h100", rate, fields)


def qwen_readme(model: str, max_length: int, rate: float) -> Published:
    """QwenLM/Qwen README.md: LoRA of rank 64 with checkpointing, one row at once."""
    fields = {
        "attn_implementation": "flash_attention_2",
        "lora_r": 64,
        "max_length": max_length,
        "per_device_train_batch_size": 1,
    }
    return Published(model, "a100-80gb", rate, fields)


def litgpt(method: str, minutes: float) -> Published:
    """Lightning-AI/litgpt tutorials/resource-tables.md: minutes of 1,000 iterations of one short
    row."""
    max_length, iterations = 128, 1000
    fields = {
        "method": method,
        "max_length": max_length,
        "lora_r": 8,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 1,
    }
    return Published(LLAMA_2_7B, "a100-40gb", max_length * iterations / (60 * minutes), fields)


PUBLISHED = (
    torchtune_full(9174),
    torchtune_full(7075, torch_compile=False),
    torchtune_full(7210, gradient_checkpointing=True),
    torchtune_full(6960, gradient_checkpointing=True, optim="adamw_8bit"),
    torchtune(LLAMA_3B, "a100-80gb", 8210, method="lora", max_length=4096),
    torchtune(LLAMA_3B, "a100-80gb", 8035, method="qlora", max_length=4096),
    torchtune(LLAMA_8B, "rtx-4090", 1650, method="full", optim="paged_adamw_8bit"),
    torchtune(LLAMA_8B, "rtx-4090", 3083, method="lora"),
    torchtune(LLAMA_8B, "rtx-4090", 2413, method="qlora"),
    nemo(LLAMA_8B, 12473),
    nemo("Qwen/Qwen2.5-7B", 14110),
    qwen_readme("Qwen-7B", 512, 2731),
    qwen_readme("Qwen-7B", 1024, 2926),
    qwen_readme("Qwen-7B", 2048, 3151),
    qwen_readme("Qwen-7B", 4096, 3244),
    qwen_readme("Qwen-14B", 2048, 1950),
    litgpt("lora", 2.36),
    litgpt("qlora", 3.68),
)
"""Left out: GPTQ bases, whose kernels differ; runs on several cards; runs of unknown row
lengths."""


@pytest.mark.parametrize(
    "row", PUBLISHED, ids=lambda row: f"{row.model.split('/')[-1]}-{row.tokens_per_second:.0f}"
)
def test_a_published_rate_lies_in_the_band_of_its_forecast(row: Published) -> None:
    speed = predict(FIRST_QWEN.get(row.model, row.model), row.gpu, **row.fields)
    assert abs(speed.tokens_per_second / row.tokens_per_second - 1) < BAND
