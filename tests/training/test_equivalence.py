"""Test that every option for speed or memory leaves losses and gradients as they are."""

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from core.advise import plan
from core.job import JobSpec
from core.models import ModelShape, gpus
from core.speed import RowStatistics
from core.training.model.compiling import compile_layers, skip_adapter_input_cast
from core.training.model.layer_checkpointing import checkpoint_every
from tests.builders.paths import DEMO
from tests.builders.tiny_models import (
    FAMILIES,
    Batches,
    adapted,
    apart,
    assert_same,
    kept_bytes,
    learn,
    model_of,
    packed,
    padded,
)
from tests.builders.training_runs import lines_of, make_run, train

CPU = replace(gpus()["t4"], id="local", compute_capability=(0, 0), supports_bf16=False)
DEMO_SHAPE = ModelShape.from_config(
    json.loads((DEMO / "model" / "config.json").read_text(encoding="utf-8"))
)

FROM_COMPILER = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
"""For warnings within PyTorch's compiler."""
pytestmark = [
    pytest.mark.training,
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning"),
]


@pytest.mark.parametrize("attn_implementation", ["sdpa", "causal", "varlen"])
@pytest.mark.parametrize("num_rows", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_give_the_gradients_of_their_texts_one_by_one(
    family: str, num_rows: int, attn_implementation: str
) -> None:
    model = model_of(family, attn_implementation)
    assert_same(learn(model, packed(num_rows)), learn(model_of(family), apart()))


@pytest.mark.parametrize("attn_implementation", ["causal", "varlen"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", FAMILIES)
def test_padded_rows_give_the_same_gradients_without_a_mask(
    family: str, side: str, attn_implementation: str
) -> None:
    model = model_of(family, attn_implementation)
    assert_same(learn(model, padded(side)), learn(model_of(family), padded(side)))


@pytest.fixture
def flex_on_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run FlexAttention without its kernels, which have no backward pass on a CPU."""
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *_: None)
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.mark.usefixtures("flex_on_cpu")
@FROM_COMPILER
@pytest.mark.parametrize("batches", [packed, padded])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text", "gemma2"])
def test_flex_attention_gives_the_same_gradients_capped_or_not(
    family: str, batches: Callable[[], Batches]
) -> None:
    expected = learn(model_of(family, "eager"), apart() if batches is packed else batches())
    assert_same(learn(model_of(family, "flex_attention"), batches()), expected)


def test_two_half_batches_give_the_gradients_of_the_whole_batch() -> None:
    (batch,) = padded()
    halves = [
        {
            "inputs": {name: states[rows] for name, states in batch["inputs"].items()},
            "labels": batch["labels"][rows],
        }
        for rows in (slice(0, 2), slice(2, 4))
    ]
    assert_same(learn(model_of("llama"), halves), learn(model_of("llama"), [batch]))


@pytest.mark.parametrize("attn_implementation", ["sdpa", "varlen"])
def test_a_step_of_packed_rows_is_the_step_of_the_same_rows_padded(
    tmp_path: Path, attn_implementation: str
) -> None:
    fields: dict[str, Any] = {"max_steps": 1, "lora_dropout": 0, "per_device_train_batch_size": 48}
    padded_run = make_run(tmp_path / "padded", **fields)
    packed_run = make_run(
        tmp_path / "packed", packing=True, attn_implementation=attn_implementation, **fields
    )
    assert (train(padded_run), train(packed_run)) == (0, 0)
    (wanted, *_), (found, *_) = lines_of(padded_run), lines_of(packed_run)
    assert found["num_tokens"] == wanted["num_tokens"]
    assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
    assert found["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=1e-5)


@pytest.mark.slow
def test_both_profiles_have_the_same_losses_and_other_settings(tmp_path: Path) -> None:
    asked = JobSpec.parse(
        {"max_length": 128, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    )
    runs, settings = [], []
    for profile in ("fastest", "smallest"):
        job = asked.model_copy(update={"profile": profile})
        chosen = plan(job, DEMO_SHAPE, CPU, RowStatistics(48, 110)).change
        settings.append((chosen["per_device_train_batch_size"], chosen["gradient_checkpointing"]))
        runs.append(make_run(tmp_path / profile, lora_dropout=0, max_steps=12, **chosen))
        assert train(runs[-1]) == 0
    assert settings == [(8, False), (1, True)]
    fast, small = (lines_of(run) for run in runs)
    losses = [line["loss"] for line in fast]  # of two epochs
    assert len(losses) == 12
    assert sum(losses[6:]) < 0.97 * sum(losses[:6])
    for name in ("loss", "grad_norm"):
        expected = [line[name] for line in fast]
        assert [line[name] for line in small] == pytest.approx(expected, rel=1e-3)


# Checkpointing


@pytest.mark.parametrize("batches", [packed, padded])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_recomputed_layers_give_the_same_gradients(
    num_layers: int, batches: Callable[[], Batches]
) -> None:
    model = model_of("mistral", "varlen")
    checkpoint_every(model, num_layers)
    model.gradient_checkpointing_enable()
    assert_same(learn(model, batches()), learn(model_of("mistral"), batches()))


@pytest.mark.parametrize("wraps", [False, True], ids=["full", "lora"])
def test_the_more_layers_are_recomputed_the_less_is_kept(wraps: bool) -> None:
    kept = []
    for num_layers in (1, 2, 3):
        model = model_of("llama", "varlen")
        checkpoint_every(model, num_layers)
        model = adapted(model) if wraps else model
        model.gradient_checkpointing_enable()
        kept.append(kept_bytes(model))
    plain = model_of("llama")
    kept.append(kept_bytes(adapted(plain) if wraps else plain))
    assert kept == sorted(set(kept))


def test_every_second_layer_is_recomputed_however_often_it_is_switched_on() -> None:
    model = model_of("llama")
    checkpoint_every(model, 2)
    wrapped = adapted(model)
    for _ in range(2):  # as DPO does around the reference model
        wrapped.gradient_checkpointing_enable({"use_reentrant": False})
        assert [layer.gradient_checkpointing for layer in model.model.layers] == [True, False, True]
        assert wrapped.eval().train().is_gradient_checkpointing
        wrapped.gradient_checkpointing_disable()
        assert not any(layer.gradient_checkpointing for layer in model.model.layers)


def test_a_copy_of_a_model_recomputes_layers_of_its_own() -> None:
    model = model_of("llama")
    checkpoint_every(model, 2)
    other = copy.deepcopy(model)  # as for a reference model
    other.gradient_checkpointing_enable()
    assert [layer.gradient_checkpointing for layer in other.model.layers] == [True, False, True]
    assert not any(layer.gradient_checkpointing for layer in model.model.layers)


# Faster layers


def test_adapters_without_an_input_cast_are_exact_and_keep_less() -> None:
    learnt, kept = [], []
    for skips_cast in (False, True):
        model = adapted(model_of("llama", "varlen").bfloat16())
        if skips_cast:
            skip_adapter_input_cast(model)
        with torch.autocast("cpu", torch.bfloat16):
            learnt.append(learn(model, packed()))
            kept.append(kept_bytes(model))
    assert_same(learnt[1], learnt[0], tolerance=0)
    assert kept[1] < kept[0]


def test_adapters_cast_their_input_where_there_is_no_autocast() -> None:
    usual, skipping = (adapted(model_of("llama", "causal").bfloat16()) for _ in range(2))
    skip_adapter_input_cast(skipping)
    assert_same(learn(skipping, padded()), learn(usual, padded()), tolerance=0)
    assert_same(learn(copy.deepcopy(skipping), padded()), learn(usual, padded()), tolerance=0)


@pytest.mark.slow
@FROM_COMPILER
@pytest.mark.parametrize(("batches", "checkpoints"), [(packed, False), (padded, True)])
def test_compiled_layers_give_the_same_gradients(
    batches: Callable[[], Batches], checkpoints: bool
) -> None:
    model = adapted(model_of("llama", "varlen"))
    if checkpoints:
        model.gradient_checkpointing_enable()
    skip_adapter_input_cast(model)
    compile_layers(model)
    assert_same(learn(model, batches()), learn(adapted(model_of("llama")), batches()))


@pytest.mark.slow
@FROM_COMPILER
def test_compiled_layers_within_a_budget_give_the_same_gradients() -> None:
    kept: list[int] = []
    for budget in (1.0, 0.3):
        torch._dynamo.reset()  # a layer that is compiled already stays as it is
        model = adapted(model_of("llama", "causal"))
        skip_adapter_input_cast(model)
        compile_layers(model, budget)
        assert_same(learn(model, padded()), learn(adapted(model_of("llama")), padded()))
        kept.append(kept_bytes(model))
    assert kept[1] < 0.7 * kept[0]


@pytest.mark.slow
@FROM_COMPILER
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_a_compiled_training_has_the_same_losses_and_answers(tmp_path: Path, method: str) -> None:
    fields = {
        "method": method,
        "lora_dropout": 0,
        "gradient_checkpointing": False,
        "max_steps": 4,
        "num_samples": 2,
    }
    plain = make_run(tmp_path / "plain", **fields)
    compiled = make_run(
        tmp_path / "compiled", torch_compile=True, activation_memory_budget=0.9, **fields
    )
    torch._dynamo.reset()
    assert (train(plain), train(compiled)) == (0, 0)
    for name in ("loss", "grad_norm"):
        expected = [line[name] for line in lines_of(plain)]
        assert [line[name] for line in lines_of(compiled)] == pytest.approx(expected, rel=1e-3)
    assert lines_of(compiled, "samples.jsonl") == lines_of(plain, "samples.jsonl")
