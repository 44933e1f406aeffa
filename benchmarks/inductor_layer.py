"""What torch.compile makes of one decoder layer, without a GPU and without building a kernel.

Reads the graphs that its partitioner leaves and the code that Inductor writes for them; computes nothing.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from math import prod
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

from benchmarks.compiled_layers import RANK, Layer

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
ATTENTION_ON_A_PROCESSOR = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
ALLOCATION = re.compile(r"(\w+) = empty_strided_\w+\(\((.*?)\), \(.*?\), torch\.(\w+)\)")
CALL = re.compile(r"(\w+) = torch\.ops\.\w+\.(\w+)\.default\(")
OTHER_NAME = re.compile(
    r"(\w+) = (?:reinterpret_tensor\()?(\w+)(?:\[\d+\]|, .*\))?(?:; del (\w+))?(?:  # \w+)?$"
)
RELEASE = re.compile(r"del (\w+)$")
"""The lines of Inductor's code that make a tensor, have one made, give it another name, and give it up."""


def measure(config: Mapping[str, Any], method: str, budget: float, num_tokens: int) -> Layer:
    """One step of one compiled layer, on one row of so many tokens. Nothing is computed, so that sizes may be large."""
    torch._dynamo.reset()
    layer, positions = _layer_of(config, method, num_tokens)
    x = torch.empty(1, num_tokens, config["hidden_size"], dtype=torch.bfloat16, requires_grad=True)
    with _spied_compiler(budget) as graphs:
        layer.compile()
        with torch.autocast("cpu", torch.bfloat16, enabled=method != "full"):
            output = layer(x, position_embeddings=positions, attention_mask=None)
        (output[0] if isinstance(output, tuple) else output).sum().backward()
    forward, backward = graphs
    output_bytes = x.numel() * x.element_size()
    return Layer(
        forward.left_bytes - output_bytes, backward.at_once_bytes, forward.flops, backward.flops
    )


def _layer_of(
    config: Mapping[str, Any], method: str, num_tokens: int
) -> tuple[Any, tuple[torch.Tensor, ...]]:
    """(a layer in bfloat16 as our training program has it, cos and sin of its positions)."""
    made = AutoConfig.for_model(**config)
    model: Any = AutoModelForCausalLM.from_config(
        made, dtype=torch.bfloat16, attn_implementation="sdpa"
    )
    layer = next(
        module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)
    )
    if method != "full":
        layer.requires_grad_(False)
        if method == "qlora":
            _quantise(layer)
        layer = inject_adapter_in_model(
            LoraConfig(r=RANK, lora_alpha=32, target_modules=list(LINEARS)), layer
        )
        for parameter in layer.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(
                    torch.float32 if method == "lora" else torch.bfloat16
                )
        for module in layer.modules():
            if isinstance(module, BaseTunerLayer):
                module.cast_input_dtype_enabled = False
    cos_or_sin = torch.zeros(1, num_tokens, config["head_dim"], dtype=torch.bfloat16)
    return layer.train(), (cos_or_sin, cos_or_sin.clone())


def _quantise(layer: Any) -> None:
    """Puts 4-bit layers in place of linear ones."""
    for owner in list(layer.modules()):
        for name, child in list(owner.named_children()):
            if isinstance(child, torch.nn.Linear):
                made = bitsandbytes.nn.Linear4bit(
                    child.in_features,
                    child.out_features,
                    child.bias is not None,
                    torch.bfloat16,
                    quant_type="nf4",
                )
                weight = child.weight.data.clone()
                made.weight = bitsandbytes.nn.Params4bit(
                    weight, requires_grad=False, quant_type="nf4"
                )
                made.bias = child.bias
                made.support_avx512bf16_for_cpu = False
                setattr(owner, name, made.to("cpu"))


def _flops_of_4_bit_product(
    x: Sequence[int], _: object, weight: Sequence[int], *__: object, **___: object
) -> int:
    """As in core/training/model/compiling.py."""
    return 2 * prod(x[:-1]) * prod(weight)


class _WrittenDown(BaseException):
    """Inductor has said how a graph allocates; its kernels need not be built. It wraps every Exception in its own."""


@dataclass(frozen=True)
class _Graph:
    """What a forward or backward pass does."""

    flops: int
    at_once_bytes: int
    left_bytes: int
    """What it returns, parameters and inputs aside."""


@contextmanager
def _spied_compiler(budget: float) -> Iterator[list[_Graph]]:
    """Lets torch.compile do all but build kernels; what its graphs do is written down, and their results are blank."""
    graphs: list[_Graph] = []
    whole_compile, whole_inner, sources = compile_fx.compile_fx, compile_fx.compile_fx_inner, []

    def write_down(lowering: GraphLowering) -> None:
        sources.append(lowering.codegen()[0].value)
        raise _WrittenDown

    def inner(graph: torch.fx.GraphModule, inputs: Any, **options: Any) -> Any:
        nodes = [node for node in graph.graph.nodes if "val" in node.meta]
        flops = sum(map(_flops, nodes))
        blank = _blank(graph)
        with suppress(_WrittenDown):
            whole_inner(graph, inputs, **options)
        graphs.append(_Graph(flops, *_replayed(sources[-1], nodes)))
        return blank

    def compile_without_kernels(graph: torch.fx.GraphModule, inputs: Any, **_: Any) -> Any:
        return whole_compile(graph, inputs, inner_compile=inner)

    with (
        functorch.patch(activation_memory_budget=budget, is_non_builtin_to_include=True),
        torch._dynamo.config.patch(automatic_dynamic_shapes=False),
        torch._inductor.config.patch(fx_graph_cache=False),
        patch.dict(
            flop_registry,
            {torch.ops.bitsandbytes.gemm_4bit: shape_wrapper(_flops_of_4_bit_product)},
        ),
        patch.object(GraphLowering, "compile_to_module", write_down),
        patch.object(compile_fx, "compile_fx", compile_without_kernels),
        patch.object(
            partitioners, "get_default_op_list", _with_attention(partitioners.get_default_op_list)
        ),
    ):
        yield graphs


def _blank(graph: torch.fx.GraphModule) -> Any:
    """A function that returns what a graph does in size: its inputs where it returns those, tensors without content."""
    names = [node.name for node in graph.graph.nodes if node.op == "placeholder"]
    (results,) = graph.graph.find_nodes(op="output")[0].args
    sizes = {
        node.name: (
            tuple(node.meta["val"].shape),
            node.meta["val"].stride(),
            node.meta["val"].dtype,
        )
        for node in results
        if isinstance(node, torch.fx.Node)
    }

    def run(*inputs: Any) -> list[Any]:
        made = {
            name: torch.empty_strided(*size, dtype=dtype) for name, (*size, dtype) in sizes.items()
        }
        found = made | dict(zip(names, inputs, strict=True))
        return [found[node.name] if isinstance(node, torch.fx.Node) else None for node in results]

    return make_boxed_func(run)


def _with_attention(default: Callable[[], Any]) -> Callable[[], Any]:
    """The partitioner's lists of operations with a processor's attention among the costly, as a card's is."""

    def listed() -> Any:
        found = default()
        return replace(
            found, compute_intensive_ops=found.compute_intensive_ops | {ATTENTION_ON_A_PROCESSOR}
        )

    return listed


def _flops(node: torch.fx.Node) -> int:
    packet = getattr(node.target, "overloadpacket", None)
    if node.op != "call_function" or packet not in flop_registry:
        return 0
    args, named = tree_map(
        lambda each: each.meta["val"] if isinstance(each, torch.fx.Node) else each,
        (node.args, node.kwargs),
    )
    return flop_registry[packet](*args, **named, out_val=node.meta["val"])


def _replayed(source: str, nodes: Sequence[torch.fx.Node]) -> tuple[int, int]:
    """(the most bytes of activations alive at once, bytes of those returned) in the code that Inductor wrote."""
    results: dict[str, list[int]] = {}
    live: dict[str, int] = {}
    for node in nodes:
        if packet := getattr(node.target, "overloadpacket", None):
            results.setdefault(packet.__name__, []).append(_num_bytes(node.meta["val"]))
        elif node.op == "placeholder" and not node.name.startswith("primals"):
            live[node.name] = _num_bytes(node.meta["val"])
    owner, names, most = {name: name for name in live}, dict.fromkeys(live, 1), sum(live.values())
    for line in map(
        str.strip, source[source.index("def call(") : source.index("runner = ")].splitlines()
    ):
        allocated, called = ALLOCATION.match(line), CALL.match(line)
        if allocated or called:
            name, of_what, *rest = (allocated or called).groups()
            owner[name], names[name] = name, 1
            live[name] = _size_of(of_what, *rest) if rest else results[of_what].pop(0)
            most = max(most, sum(live.values()))
        elif (found := OTHER_NAME.match(line)) and found[2] in owner:
            owner[found[1]] = owner[found[2]]
            names[owner[found[1]]] += 1
            line = f"del {found[3]}"
        if (found := RELEASE.match(line)) and found[1] in owner:
            storage = owner.pop(found[1])
            names[storage] -= 1
            if names[storage] == 0:
                del live[storage]
    returned = {
        owner[name]
        for name in re.findall(r"\w+", source[source.rindex("return (") :])
        if name in owner
    }
    return most, sum(live[storage] for storage in returned)


def _size_of(sizes: str, dtype: str) -> int:
    return prod(int(size) for size in sizes.split(",") if size.strip()) * int(
        getattr(torch, dtype).itemsize
    )


def _num_bytes(value: Any) -> int:
    parts = value if isinstance(value, (tuple, list)) else [value]
    return sum(part.numel() * part.element_size() for part in parts if torch.is_tensor(part))
