"""One compiled decoder layer as the memory estimate sees it; compiled_layers.py asks torch."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from core.job import JobSpec
from core.memory.program import program_of
from core.memory.simulator import DeviceMemory
from core.memory.step import Simulation
from core.models import ModelShape, gpus

FAMILIES = ("llama", "qwen2", "qwen3", "gemma3_text", "phi3", "olmo2", "granite")
METHODS = ("full", "lora", "qlora")
RANK = 16


@dataclass(frozen=True)
class Layer:
    """Memory and operations of one layer in one step."""

    kept_bytes: int
    """Bytes of saved tensors, the layer's input excepted."""
    peak_bytes: int
    """Most bytes alive in its backward pass."""
    forward_flops: int = 0
    backward_flops: int = 0


def config_of(family: str, width: int) -> dict[str, Any]:
    """Return the config of a model of one layer with the proportions of an 8B model."""
    heads = max(1, width // 128)
    return {
        "model_type": family,
        "hidden_size": width,
        "intermediate_size": 7 * width // 2,
        "num_hidden_layers": 1,
        "num_attention_heads": heads,
        "num_key_value_heads": max(1, heads // 4),
        "head_dim": width // heads,
        "vocab_size": 512,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 1,
        "max_position_embeddings": 131072,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    }


def estimated_layer(
    config: Mapping[str, Any], method: str, budget: float, num_tokens: int
) -> Layer:
    """Return a layer's memory by the estimate, without its operations."""
    job = JobSpec.parse(
        {
            "method": method,
            "lora_r": RANK,
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 1,
            "max_length": num_tokens,
            "gradient_checkpointing": False,
            "torch_compile": True,
            "activation_memory_budget": budget,
        }
    )
    program = program_of(job, ModelShape.from_config(dict(config)), gpus()["rtx-4090"])
    program = replace(program, workspace_bytes=0)
    simulation = Simulation(program, program.layer_kinds())
    memory = simulation.memory
    memory.enter("step")
    simulation.step()
    first_mark = {label: position for position, label in reversed(memory.marks)}
    before_forward = _live_bytes(memory, first_mark["forward, layer 1"])
    before_backward = _live_bytes(memory, first_mark["backward, layer 1"])
    input_bytes = num_tokens * program.shape.hidden_size * program.residual_itemsize
    kept_bytes = before_backward["activations"] - before_forward["activations"]
    # before the backward pass the gradient of the output exists, which is as large as the input
    kept_bytes += before_backward["temporary"] - input_bytes
    resident_bytes = before_forward.total() + before_backward["gradients"]
    return Layer(kept_bytes, memory.peaks["backward/0/0"].num_bytes - resident_bytes)


def _live_bytes(memory: DeviceMemory, position: int) -> Counter[str]:
    """Return the bytes alive after so many entries of the log, by component."""
    live = Counter[str]()
    for entry in memory.log[:position]:
        tensor, sign = (entry, 1) if entry >= 0 else (~entry, -1)
        live[memory.components[tensor]] += sign * memory.sizes[tensor]
    return live
