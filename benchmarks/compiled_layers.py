"""What a compiled layer keeps, needs at once and computes again, beside what is estimated.

    python benchmarks/compiled_layers.py [--family NAME] [--width N] [--tokens N]

Compiles one layer on a processor for each method and activation memory budget, as torch.compile does it for our
training program. Prints

    kept      kB per token that it keeps for its backward pass, and what the memory estimate says;
    at once   the most kB per token of what it kept, gradients and intermediate results in its backward pass: the
              allocations and releases in the code that Inductor writes, and what the memory estimate says;
    again     the operations of products that its backward pass does beyond those without a budget, as a share of a
              forward pass (core/speed/passes.py has them).

Asserts nothing.
"""

import argparse
import sys
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from core.job import JobSpec
from core.memory.program.from_job import program_of
from core.memory.simulator.device_memory import Heap
from core.memory.step import Simulation
from core.models import ModelShape, gpus

BUDGETS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0)
METHODS = ("full", "lora", "qlora")
FAMILIES = ("llama", "qwen2", "qwen3", "gemma3_text", "phi3", "olmo2", "granite")
RANK = 16


@dataclass(frozen=True)
class Layer:
    """One layer and its step, in bytes and operations."""

    kept_bytes: int
    """Its input aside."""
    at_once_bytes: int
    forward_flops: int = 0
    backward_flops: int = 0


def config_of(family: str, width: int) -> dict[str, Any]:
    """The config of a model of one layer, of the proportions of an 8B."""
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


def estimated(config: Mapping[str, Any], method: str, budget: float, num_tokens: int) -> Layer:
    """The same as the memory estimate has it."""
    asked = {
        "method": method,
        "lora_r": RANK,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "max_length": num_tokens,
        "gradient_checkpointing": False,
        "torch_compile": True,
        "activation_memory_budget": budget,
    }
    program = program_of(
        JobSpec.parse(asked), ModelShape.from_config(dict(config)), gpus()["rtx-4090"]
    )
    program = replace(program, workspace_bytes=0)
    simulation = Simulation(program, program.layer_kinds())
    simulation.heap.enter("step")
    simulation.step()
    heap = simulation.heap
    at = {label: position for position, label in reversed(heap.marks)}
    in_front, behind = (
        _live_bytes(heap, at[f"{phase}, layer 1"]) for phase in ("forward", "backward")
    )
    input_bytes = num_tokens * program.shape.hidden_size * program.residual_bytes
    return Layer(  # behind the layer there is the gradient of its output, as large as its input
        kept_bytes=behind["activations"]
        - in_front["activations"]
        + behind["temporary"]
        - input_bytes,
        at_once_bytes=heap.peaks["backward/0/0"].num_bytes - in_front.total() - behind["gradients"],
    )


def _live_bytes(heap: Heap, position: int) -> Counter[str]:
    found = Counter[str]()
    for entry in heap.log[:position]:
        tensor, sign = (entry, 1) if entry >= 0 else (~entry, -1)
        found[heap.kinds[tensor]] += sign * heap.sizes[tensor]
    return found


def main() -> None:
    """Reads the flags and prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--family", choices=FAMILIES, default="llama")
    parser.add_argument("--width", type=int, default=2048, help="of the hidden states")
    parser.add_argument("--tokens", type=int, default=1024, help="of the one row")
    asked = parser.parse_args()
    warnings.filterwarnings("ignore")
    from benchmarks.inductor_layer import measure

    config, thousands = config_of(asked.family, asked.width), 1000 * asked.tokens
    print(
        f"{'method':8}{'budget':>8}{'kept':>10}{'estimated':>10}{'at once':>10}{'estimated':>10}{'again':>8}"
    )
    for method in METHODS:
        whole = measure(config, method, 1.0, asked.tokens)
        for budget in BUDGETS:
            found = measure(config, method, budget, asked.tokens)
            guess = estimated(config, method, budget, asked.tokens)
            sizes = found.kept_bytes, guess.kept_bytes, found.at_once_bytes, guess.at_once_bytes
            again = (found.backward_flops - whole.backward_flops) / found.forward_flops
            print(
                f"{method:8}{budget:8.1f}",
                *(f"{size / thousands:9.1f}" for size in sizes),
                f"{again:7.0%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
