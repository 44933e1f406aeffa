"""Compare a compiled layer's memory and recomputation with the estimate, without a GPU.

    python benchmarks/compiled_layers.py [--family NAME] [--width N] [--tokens N]

Compiles one layer on a processor for each method and activation memory budget, as torch.compile
does it for the training program: reads the graphs that its partitioner leaves and the code that
Inductor writes for them, and builds no kernel. Prints

    kept        kB per token that the layer saves for its backward pass, and the estimate of it
    peak        most kB per token in its backward pass, of saved tensors, gradients and intermediate
                results, from the allocations and releases in Inductor's code; and the estimate
    recomputed  operations of matmuls that the backward pass does beyond those without a budget, as
                a share of a forward pass (core/speed/passes.py has them)

Asserts nothing.
"""

import argparse
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any
from unittest.mock import patch

import bitsandbytes
import torch
from functorch.compile import make_boxed_func
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch._functorch import config as functorch
from torch._functorch import partitioners
from torch._inductor import compile_fx
from torch._inductor.graph import GraphLowering
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry, shape_wrapper
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.estimated_layer import (
    FAMILIES,
    METHODS,
    RANK,
    Layer,
    config_of,
    estimated_layer,
)

BUDGETS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0)
LINEARS = (
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
    "qkv_proj",
    "gate_up_proj",
)
ATTENTION_ON_CPU = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
ALLOCATION = re.compile(r"(\w+) = empty_strided_\w+\(\((.*?)\), \(.*?\), torch\.(\w+)\)")
CALL = re.compile(r"(\w+) = torch\.ops\.\w+\.(\w+)\.default\(")
ALIAS = re.compile(
    r"(\w+) = (?:reinterpret_tensor\()?(\w+)(?:\[\d+\]|, .*\))?(?:; del (\w+))?(?:  # \w+)?$"
)
RELEASE = re.compile(r"del (\w+)$")
"""Lines of Inductor's code that allocate a tensor, call an operation that does, name a tensor once
more, and delete a name."""


def measure(config: Mapping[str, Any], method: str, budget: float, num_tokens: int) -> Layer:
    """Return one step of one compiled layer on one row. Computes nothing, so sizes may be large."""
    torch._dynamo.reset()
    layer, cos_and_sin = _layer_of(config, method, num_tokens)
    x = torch.empty(1, num_tokens, config["hidden_size"], dtype=torch.bfloat16, requires_grad=True)
    with _recording_compiler(budget) as graphs:
        layer.compile()
        with torch.autocast("cpu", torch.bfloat16, enabled=method != "full"):
            output = layer(x, position_embeddings=cos_and_sin, attention_mask=None)
        hidden = output[0] if isinstance(output, tuple) else output
        hidden.sum().backward()
    forward, backward = graphs
    output_bytes = x.numel() * x.element_size()
    kept_bytes = forward.returned_bytes - output_bytes
    return Layer(kept_bytes, backward.peak_bytes, forward.flops, backward.flops)


def _layer_of(
    config: Mapping[str, Any], method: str, num_tokens: int
) -> tuple[Any, tuple[torch.Tensor, torch.Tensor]]:
    """Return a layer in bfloat16 as the training program prepares it, and (cos, sin)."""
    model: Any = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**config), dtype=torch.bfloat16, attn_implementation="sdpa"
    )
    layers = [each for each in model.modules() if isinstance(each, GradientCheckpointingLayer)]
    layer: Any = layers[0]
    if method != "full":
        layer.requires_grad_(False)
        if method == "qlora":
            _quantize(layer)
        lora = LoraConfig(r=RANK, lora_alpha=32, target_modules=list(LINEARS))
        layer = inject_adapter_in_model(lora, layer)
        dtype = torch.float32 if method == "lora" else torch.bfloat16
        for parameter in layer.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)
        for module in layer.modules():
            if isinstance(module, BaseTunerLayer):
                module.cast_input_dtype_enabled = False
    cos = torch.zeros(1, num_tokens, config["head_dim"], dtype=torch.bfloat16)
    return layer.train(), (cos, cos.clone())


def _quantize(layer: Any) -> None:
    """Replace linear layers by 4-bit ones."""
    for owner in list(layer.modules()):
        for name, child in list(owner.named_children()):
            if not isinstance(child, torch.nn.Linear):
                continue
            sizes = (child.in_features, child.out_features, child.bias is not None)
            quantized = bitsandbytes.nn.Linear4bit(*sizes, torch.bfloat16, quant_type="nf4")
            weight = child.weight.data.clone()
            quantized.weight = bitsandbytes.nn.Params4bit(
                weight, requires_grad=False, quant_type="nf4"
            )
            quantized.bias = child.bias
            quantized.support_avx512bf16_for_cpu = False
            setattr(owner, name, quantized.to("cpu"))


def _flops_of_4_bit_matmul(
    x: Sequence[int], _: object, weight: Sequence[int], *__: object, **___: object
) -> int:
    """Return the operations, as core/training/model/compiling.py counts them."""
    return 2 * prod(x[:-1]) * prod(weight)


class _Recorded(BaseException):
    """Raised once Inductor's code is recorded. Inductor wraps every Exception, but not this one."""


@dataclass(frozen=True)
class _Graph:
    """Facts of a forward or backward graph."""

    flops: int
    peak_bytes: int
    returned_bytes: int
    """Bytes that it returns, parameters and inputs excepted."""


@contextmanager
def _recording_compiler(budget: float) -> Iterator[list[_Graph]]:
    """Let torch.compile do everything but build kernels, and record its graphs.

    A recorded graph returns tensors without content.
    """
    graphs: list[_Graph] = []
    sources: list[str] = []
    compile_whole, compile_inner = compile_fx.compile_fx, compile_fx.compile_fx_inner

    def record_source(lowering: GraphLowering) -> None:
        sources.append(lowering.codegen()[0].value)
        raise _Recorded

    def record_graph(graph: torch.fx.GraphModule, inputs: Any, **options: Any) -> Any:
        nodes = [node for node in graph.graph.nodes if "val" in node.meta]
        flops = sum(map(_flops, nodes))
        blank = _blank(graph)
        with suppress(_Recorded):
            compile_inner(graph, inputs, **options)
        graphs.append(_Graph(flops, *_replayed(sources[-1], nodes)))
        return blank

    def compile_without_kernels(graph: torch.fx.GraphModule, inputs: Any, **_: Any) -> Any:
        return compile_whole(graph, inputs, inner_compile=record_graph)

    four_bit = {torch.ops.bitsandbytes.gemm_4bit: shape_wrapper(_flops_of_4_bit_matmul)}
    operations = _with_attention(partitioners.get_default_op_list)
    with (
        functorch.patch(activation_memory_budget=budget, is_non_builtin_to_include=True),
        torch._dynamo.config.patch(automatic_dynamic_shapes=False),
        torch._inductor.config.patch(fx_graph_cache=False),
        patch.dict(flop_registry, four_bit),
        patch.object(GraphLowering, "compile_to_module", record_source),
        patch.object(compile_fx, "compile_fx", compile_without_kernels),
        patch.object(partitioners, "get_default_op_list", operations),
    ):
        yield graphs


def _blank(graph: torch.fx.GraphModule) -> Any:
    """Return a function that returns what a graph does: its inputs, and tensors without content."""
    names = [node.name for node in graph.graph.nodes if node.op == "placeholder"]
    (results,) = graph.graph.find_nodes(op="output")[0].args
    layouts = {}
    for node in results:
        if isinstance(node, torch.fx.Node):
            value = node.meta["val"]
            layouts[node.name] = (tuple(value.shape), value.stride(), value.dtype)

    def run(*inputs: Any) -> list[Any]:
        values = {
            name: torch.empty_strided(size, stride, dtype=dtype)
            for name, (size, stride, dtype) in layouts.items()
        }
        values |= dict(zip(names, inputs, strict=True))
        return [values[node.name] if isinstance(node, torch.fx.Node) else None for node in results]

    return make_boxed_func(run)


def _with_attention(default: Callable[[], Any]) -> Callable[[], Any]:
    """Count a processor's attention among the costly operations, as a GPU's is."""

    def operations() -> Any:
        found = default()
        costly = found.compute_intensive_ops | {ATTENTION_ON_CPU}
        return replace(found, compute_intensive_ops=costly)

    return operations


def _flops(node: torch.fx.Node) -> int:
    packet = getattr(node.target, "overloadpacket", None)
    if node.op != "call_function" or packet not in flop_registry:
        return 0
    args, kwargs = tree_map(
        lambda each: each.meta["val"] if isinstance(each, torch.fx.Node) else each,
        (node.args, node.kwargs),
    )
    return flop_registry[packet](*args, **kwargs, out_val=node.meta["val"])


class _Names:
    """Names in Inductor's code, and the bytes of the storages that they stand for."""

    def __init__(self) -> None:
        self.storage_of: dict[str, str] = {}
        self.live: dict[str, int] = {}
        self.peak_bytes = 0
        self._num_names: dict[str, int] = {}

    def allocate(self, name: str, num_bytes: int) -> None:
        self.storage_of[name] = name
        self._num_names[name] = 1
        self.live[name] = num_bytes
        self.peak_bytes = max(self.peak_bytes, sum(self.live.values()))

    def alias(self, name: str, other: str) -> None:
        self.storage_of[name] = self.storage_of[other]
        self._num_names[self.storage_of[name]] += 1

    def delete(self, name: str) -> None:
        storage = self.storage_of.pop(name)
        self._num_names[storage] -= 1
        if self._num_names[storage] == 0:
            del self.live[storage]


def _replayed(source: str, nodes: Sequence[torch.fx.Node]) -> tuple[int, int]:
    """Return (most bytes of activations alive, bytes returned) in the code that Inductor wrote."""
    results: dict[str, list[int]] = {}
    names = _Names()
    for node in nodes:
        packet = getattr(node.target, "overloadpacket", None)
        if packet:
            results.setdefault(packet.__name__, []).append(_num_bytes(node.meta["val"]))
        elif node.op == "placeholder" and not node.name.startswith("primals"):
            names.allocate(node.name, _num_bytes(node.meta["val"]))
    body = source[source.index("def call(") : source.index("runner = ")]
    for line in body.splitlines():
        _replay_line(line.strip(), names, results)
    words = re.findall(r"\w+", source[source.rindex("return (") :])
    returned = {names.storage_of[word] for word in words if word in names.storage_of}
    return names.peak_bytes, sum(names.live[storage] for storage in returned)


def _replay_line(line: str, names: _Names, results: dict[str, list[int]]) -> None:
    """Apply one line of Inductor's code; `results` are the sizes that operations return."""
    deleted: str | None = None
    if allocation := ALLOCATION.match(line):
        name, sizes, dtype = allocation.groups()
        names.allocate(name, _size_of(sizes, dtype))
    elif call := CALL.match(line):
        name, operation = call.groups()
        names.allocate(name, results[operation].pop(0))
    elif (alias := ALIAS.match(line)) and alias[2] in names.storage_of:
        names.alias(alias[1], alias[2])
        deleted = alias[3]
    elif release := RELEASE.match(line):
        deleted = release[1]
    if deleted in names.storage_of:
        names.delete(deleted)


def _size_of(sizes: str, dtype: str) -> int:
    numel = prod(int(size) for size in sizes.split(",") if size.strip())
    return numel * int(getattr(torch, dtype).itemsize)


def _num_bytes(value: Any) -> int:
    parts = value if isinstance(value, (tuple, list)) else [value]
    return sum(part.numel() * part.element_size() for part in parts if torch.is_tensor(part))


def main() -> None:
    """Read the flags and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--family", choices=FAMILIES, default="llama")
    parser.add_argument("--width", type=int, default=2048, help="of the hidden states")
    parser.add_argument("--tokens", type=int, default=1024, help="of the one row")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    config = config_of(options.family, options.width)
    thousand_tokens = 1000 * options.tokens
    heads = ("kept", "estimated", "peak", "estimated")
    print(f"{'method':8}{'budget':>8}", *(f"{head:>9}" for head in heads), f"{'recomputed':>11}")
    for method in METHODS:
        whole = measure(config, method, 1.0, options.tokens)
        for budget in BUDGETS:
            layer = measure(config, method, budget, options.tokens)
            guess = estimated_layer(config, method, budget, options.tokens)
            sizes = (layer.kept_bytes, guess.kept_bytes, layer.peak_bytes, guess.peak_bytes)
            cells = (f"{size / thousand_tokens:9.1f}" for size in sizes)
            recomputed = (layer.backward_flops - whole.backward_flops) / layer.forward_flops
            print(f"{method:8}{budget:8.1f}", *cells, f"{recomputed:10.0%}", flush=True)


if __name__ == "__main__":
    main()
