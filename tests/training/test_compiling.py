"""Test how often layers are compiled, and the cost that torch assumes for recomputing them.

Graphs run as they are: no kernel is built.
"""

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import bitsandbytes
import pytest
import torch
from functorch.compile import make_boxed_func
from torch.utils import flop_counter
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

import tests.builders.varlen_on_cpu
from core.training.model import attention
from core.training.model.compiling import compile_layers, skip_adapter_input_cast
from tests.builders.tiny_models import adapted, model_of

pytestmark = [
    pytest.mark.training,
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning"),
    # from within PyTorch's compiler
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning"),
]
assert tests.builders.varlen_on_cpu


@pytest.fixture
def graphs() -> Iterator[list[str]]:
    """Collect the operations of each compiled graph; fail if a recompilation is refused."""
    from torch._inductor import compile_fx  # warns

    found: list[str] = []
    whole = compile_fx.compile_fx

    def as_it_is(graph: torch.fx.GraphModule, inputs: Any, **_: Any) -> Any:
        found.append(" ".join(node.name for node in graph.graph.nodes))
        return make_boxed_func(graph.forward)

    def compile_as_it_is(graph: torch.fx.GraphModule, inputs: Any, **_: Any) -> Any:
        return whole(graph, inputs, inner_compile=as_it_is)

    torch._dynamo.reset()
    with (
        patch.object(compile_fx, "compile_fx", compile_as_it_is),
        torch._dynamo.config.patch(fail_on_recompile_limit_hit=True, recompile_limit=8),
        torch._functorch.config.patch(
            activation_memory_budget=1.0, is_non_builtin_to_include=False
        ),
    ):
        yield found


def step(model: Any, num_rows: int, length: int, trains: bool = True) -> None:
    ids = torch.ones(num_rows, length, dtype=torch.long)
    mask = torch.ones_like(ids)
    mask[0, -2:] = 0
    model.train(trains)
    with torch.set_grad_enabled(trains):
        loss = model(input_ids=ids, attention_mask=mask, labels=ids, use_cache=False).loss
    if trains:
        loss.backward()


def compiled(family: str, attn_implementation: str = "causal", budget: float = 1.0) -> Any:
    model = adapted(model_of(family, attn_implementation))
    skip_adapter_input_cast(model)
    compile_layers(model, budget)
    return model


def test_the_layers_of_a_model_are_compiled_once_the_first_included(graphs: list[str]) -> None:
    step(compiled("llama"), 2, 12)
    assert len(graphs) == 2  # forward and backward


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_batches_of_all_sizes_run_compiled(graphs: list[str], family: str) -> None:
    model = compiled(family)
    for num_rows, length in ((4, 12), (4, 10), (4, 7), (3, 9), (1, 8), (2, 4)):
        for trains in (True, False):
            step(model, num_rows, length, trains)
    num_graphs = len(graphs)
    for num_rows, length in ((5, 11), (1, 6), (6, 4)):
        step(model, num_rows, length)
    assert len(graphs) == num_graphs


@pytest.mark.slow
def test_joined_rows_of_other_lengths_cost_one_more_compilation(
    graphs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "has_kernel", lambda device: True)
    model = compiled("llama", "varlen").bfloat16()
    counts = []
    for lengths in ((9, 7), (5, 6, 5), (3, 4, 9), (2, 2, 2, 10), (8, 8)):
        positions = torch.cat([torch.arange(length) for length in lengths])[None]
        ids = torch.ones_like(positions)
        with torch.autocast("cpu", torch.bfloat16):
            output = model(input_ids=ids, position_ids=positions, labels=ids, use_cache=False)
            output.loss.backward()
        counts.append(len(graphs))
    assert counts[0] == 2
    assert counts[-1] == counts[2] <= 4


def test_answers_are_generated_uncompiled(graphs: list[str]) -> None:
    model = compiled("llama").eval()
    for length in (3, 5):
        ids = torch.ones(1, length, dtype=torch.long)
        with torch.no_grad():
            answer = model.generate(
                input_ids=ids, attention_mask=ids, max_new_tokens=4, do_sample=False
            )
        assert answer.shape[1] > length
    assert graphs == []
    step(model, 2, 12)
    assert len(graphs) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("budget", "is_again"), [(0.5, False), (0.01, True)])
def test_varlen_attention_is_computed_again_last(
    graphs: list[str], monkeypatch: pytest.MonkeyPatch, budget: float, is_again: bool
) -> None:
    monkeypatch.setattr(attention, "has_kernel", lambda device: True)
    positions = torch.arange(512).remainder(256)[None]
    model, ids = compiled("llama", "varlen", budget).bfloat16(), torch.ones_like(positions)
    with torch.autocast("cpu", torch.bfloat16):
        model(input_ids=ids, position_ids=positions, labels=ids, use_cache=False).loss.backward()
    _, backward = graphs
    assert (backward.count("varlen_attn") > 1) == is_again


def test_attention_with_shared_keys_has_a_cost_in_every_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    q, k = torch.empty(2, 8, 5, 16, device="meta"), torch.empty(2, 2, 7, 16, device="meta")
    known = sdpa_flop_count(q.shape, k.shape, k.shape)

    def refuse(query: Any, key: Any, value: Any) -> int:
        """As torch 2.11 does where heads share keys."""
        raise AssertionError("sdpa_flop_count: query/key/value shapes are incompatible")

    monkeypatch.setattr(flop_counter, "sdpa_flop_count", refuse)
    compile_layers(torch.nn.Linear(1, 1))
    with FlopCounterMode(display=False) as counter:
        torch.ops.aten._scaled_dot_product_flash_attention(q, k, k)
    assert counter.get_total_flops() == known == 2 * 2 * 8 * 5 * 7 * (16 + 16)


def test_a_4_bit_matmul_is_counted_with_all_its_operations() -> None:
    layer = bitsandbytes.nn.Linear4bit(
        64, 128, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4"
    ).to("cpu")
    layer.support_avx512bf16_for_cpu = False
    with FlopCounterMode(display=False) as counter:
        layer(torch.ones(3, 5, 64, dtype=torch.bfloat16, requires_grad=True))
    assert counter.get_total_flops() == 2 * 3 * 5 * 64 * 128
