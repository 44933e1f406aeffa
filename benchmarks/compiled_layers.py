"""What an activation memory budget keeps of a compiled layer, and what it computes again.

    python benchmarks/activation_budget.py [--width N] [--tokens N]

Compiles one Llama layer for each budget, with the decompositions and the partitioner of torch.compile, and takes one
step on the processor. Prints for each budget the bytes that the layer keeps per token for its backward pass, the share
of what it keeps without a budget, and the operations of matrix products that its backward pass does beyond those
without a budget, as a share of a forward pass. core/speed/passes.py has the last. Asserts nothing.
"""

import argparse
import warnings
from collections.abc import Callable
from typing import Any

import torch
from functorch.compile import make_boxed_func
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch._dynamo.backends.common import aot_autograd
from torch._functorch import config as partitioner
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.decomposition import select_decomp_table
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

BUDGETS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0)
METHODS = ("lora", "full")
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def layer_of(config: LlamaConfig, method: str) -> Any:
    """A layer in bfloat16, as our training program has it: whole, or under an adapter in float32."""
    layer: Any = LlamaDecoderLayer(config, 0).to(torch.bfloat16)
    if method == "lora":
        layer = inject_adapter_in_model(LoraConfig(r=16, target_modules=list(LINEARS)), layer.requires_grad_(False))
        for parameter in layer.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        for module in layer.modules():
            if isinstance(module, BaseTunerLayer):
                module.cast_input_dtype_enabled = False  # takes its input as it is, as in our training program
    return layer


def measure(config: LlamaConfig, method: str, budget: float, num_tokens: int) -> tuple[int, int, int]:
    """(bytes kept, operations of the forward pass, of the backward pass) of one layer."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    partitioner.activation_memory_budget = budget
    layer, operations, kept = layer_of(config, method), [], {}
    x = torch.randn(1, num_tokens, config.hidden_size, dtype=torch.bfloat16, requires_grad=True)
    positions = LlamaRotaryEmbedding(config)(x, torch.arange(num_tokens)[None])
    given = {tensor.untyped_storage().data_ptr() for tensor in (*layer.parameters(), *positions)}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in given:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    compiled = torch.compile(layer, backend=_counting(operations), fullgraph=True)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=method == "lora")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast:
        output = compiled(x, position_embeddings=positions)
    output.sum().backward()
    forward, backward = operations
    return sum(kept.values()), forward, backward


def _counting(operations: list[int]) -> Callable[..., Any]:
    """A backend that runs graphs as they are, and adds up the products in each."""

    def count(graph: torch.fx.GraphModule, _inputs: object) -> Any:
        found = 0
        for node in graph.graph.nodes:
            packet = getattr(node.target, "overloadpacket", None)
            if node.op == "call_function" and packet in flop_registry:
                args, named = tree_map(_value, (node.args, node.kwargs))
                found += flop_registry[packet](*args, **named, out_val=node.meta["val"])
        operations.append(found)
        return make_boxed_func(graph.forward)

    return aot_autograd(
        fw_compiler=count,
        bw_compiler=count,
        partition_fn=min_cut_rematerialization_partition,
        decompositions=select_decomp_table(),
    )


def _value(argument: object) -> object:
    return argument.meta["val"] if isinstance(argument, torch.fx.Node) else argument


def main() -> None:
    """Reads the flags and prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--width", type=int, default=1024, help="of the hidden states")
    parser.add_argument("--tokens", type=int, default=128, help="of the one row")
    asked = parser.parse_args()
    warnings.filterwarnings("ignore")
    config = LlamaConfig(
        hidden_size=asked.width,
        intermediate_size=7 * asked.width // 2,
        num_attention_heads=asked.width // 128,
        num_key_value_heads=max(1, asked.width // 512),
        num_hidden_layers=1,
        attn_implementation="sdpa",
    )
    print(f"{'method':8}{'budget':>8}{'kB/token':>10}{'kept':>8}{'again':>8}")
    for method in METHODS:
        whole = measure(config, method, 1.0, asked.tokens)
        for budget in BUDGETS:
            kept, forward, backward = measure(config, method, budget, asked.tokens)
            share, again = kept / whole[0], (backward - whole[2]) / forward
            print(f"{method:8}{budget:8.1f}{kept / asked.tokens / 1e3:10.1f}{share:8.0%}{again:8.0%}", flush=True)


if __name__ == "__main__":
    main()
