"""Test attention without masks: finding sequences, calling the kernel, refusing models."""

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GptOssConfig,
)
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

import tests.builders.varlen_on_cpu
from core.training.model import attention, load
from tests.builders.tiny_models import (
    FAMILIES,
    TINY,
    adapted,
    apart,
    assert_same,
    learn,
    model_of,
    packed,
    padded,
    sequences,
)
from tests.builders.training_runs import job_of

pytestmark = [
    pytest.mark.training,
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning"),
]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that the device has the kernel, for any dtype."""
    monkeypatch.setattr(attention, "has_kernel", lambda device: True)
    monkeypatch.setattr(attention, "fits_kernel", lambda query, value: True)


def mask_of(model: Any, batch: dict[str, Any], make_mask: Any = create_causal_mask) -> Any:
    """Return the mask that the layers of a model get."""
    inputs = batch["inputs"]
    return make_mask(
        config=model.config,
        inputs_embeds=torch.zeros(*inputs["input_ids"].shape, 8),
        attention_mask=inputs.get("attention_mask"),
        past_key_values=None,
        position_ids=inputs.get("position_ids"),
    )


# Finding sequences


@pytest.mark.parametrize("num_rows", [1, 2])
def test_sequences_are_found_in_packed_rows_and_no_mask_is_built(num_rows: int) -> None:
    found = mask_of(model_of("llama", "varlen"), *packed(num_rows))
    assert (found.lengths, found.longest, found.window) == ((9, 6, 1, 14), 14, None)
    assert found.ends.tolist() == [0, 9, 15, 16, 30]
    assert found.ends.dtype == torch.int32


def test_a_window_is_kept_with_the_sequences() -> None:
    model = model_of("mistral", "varlen")
    found = mask_of(model, *packed(), create_sliding_window_causal_mask)
    assert (found.lengths, found.window) == ((9, 6, 1, 14), 5)


def test_padded_rows_longer_than_the_window_are_sequences() -> None:
    found = mask_of(model_of("mistral", "varlen"), *padded(), create_sliding_window_causal_mask)
    assert (found.lengths, found.window) == ((14, 14, 14, 14), 5)


@pytest.mark.parametrize("attn_implementation", ["causal", "varlen"])
def test_only_padding_on_the_left_needs_a_mask(attn_implementation: str) -> None:
    model = model_of("llama", attn_implementation)
    assert mask_of(model, *padded("right")) is None
    assert mask_of(model, *padded("left")).shape == (4, 1, 14, 14)


def test_tokens_that_see_later_ones_get_a_mask() -> None:
    def make_mask(**inputs: Any) -> Any:
        blocks = torch.tensor([[-1] * 9 + [0] * 4 + [-1] * 17])
        return create_causal_mask(**inputs, block_sequence_ids=blocks)

    assert mask_of(model_of("llama", "varlen"), *packed(), make_mask).shape == (1, 1, 30, 30)


# Calling the kernel


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batches", [packed, padded])
def test_the_kernel_gives_the_gradients_of_sdpa(family: str, batches: Any) -> None:
    assert_same(learn(model_of(family, "varlen"), batches()), learn(model_of(family), batches()))


@pytest.mark.usefixtures("kernel")
def test_a_kernel_that_cannot_share_keys_gets_them_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []

    def without_sharing(
        query: torch.Tensor, key: torch.Tensor, *rest: Any, **options: Any
    ) -> torch.Tensor:
        calls.append((query.shape == key.shape, "enable_gqa" in options))
        return tests.builders.varlen_on_cpu.varlen.varlen_attn(query, key, *rest, **options)

    monkeypatch.setattr(attention, "varlen_attn", without_sharing)
    monkeypatch.setattr(attention, "KERNEL_SHARES_KEYS", False)  # as in torch 2.11
    assert_same(learn(model_of("llama", "varlen"), packed()), learn(model_of("llama"), apart()))
    assert set(calls) == {(True, False)}


@pytest.mark.usefixtures("kernel")
def test_the_kernel_gets_the_dtype_of_autocast(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dtypes = []

    def fits(query: torch.Tensor, value: torch.Tensor) -> bool:
        dtypes.append((query.dtype, value.dtype))
        return True

    monkeypatch.setattr(attention, "fits_kernel", fits)
    with torch.autocast("cpu", torch.bfloat16):
        learn(model_of("qwen3", "varlen"), packed())
    assert set(dtypes) == {(torch.bfloat16, torch.bfloat16)}


@pytest.mark.usefixtures("kernel")
def test_layers_recomputed_with_the_kernel_give_the_same_gradients() -> None:
    model = adapted(model_of("llama", "varlen"))
    model.gradient_checkpointing_enable()
    assert_same(learn(model, packed()), learn(adapted(model_of("llama")), packed()))


@pytest.mark.usefixtures("kernel")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # PyTorch's
def test_layers_compile_once_and_once_more_for_all_other_lengths() -> None:
    """`fullgraph` fails the test where the graph of a layer would break."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter, model = CompileCounterWithBackend("aot_eager"), model_of("llama", "varlen")
    for layer in model.model.layers:
        layer.compile(backend=counter, fullgraph=True)
    for lengths in ((9, 6), (7, 3, 11), (2, 14, 5, 6), (20, 13)):
        ids = torch.arange(sum(lengths))[None]
        positions = torch.cat([torch.arange(length) for length in lengths])[None]
        model(input_ids=ids, position_ids=positions, use_cache=False).logits.sum().backward()
    assert counter.frame_count == 2


@pytest.mark.parametrize(
    ("dtype", "size", "value_size", "fits"),
    [
        (torch.bfloat16, 128, 128, True),
        (torch.float16, 256, 256, True),
        (torch.float32, 128, 128, False),
        (torch.bfloat16, 512, 512, False),
        (torch.bfloat16, 192, 128, False),
        (torch.bfloat16, 12, 12, False),
    ],
)
def test_the_kernel_takes_half_precision_and_heads_of_equal_moderate_size(
    dtype: torch.dtype, size: int, value_size: int, fits: bool
) -> None:
    query, value = torch.zeros(3, 4, size, dtype=dtype), torch.zeros(3, 2, value_size)
    assert attention.fits_kernel(query, value) == fits


# Choosing a kernel


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "causal"),
        ({"stage": "dpo"}, "causal"),
        ({"stage": "grpo"}, "sdpa"),
        ({"packing": True}, "sdpa"),
        ({"attn_implementation": "varlen"}, "varlen"),
        ({"attn_implementation": "eager"}, "eager"),
    ],
)
def test_rows_padded_at_their_end_need_no_mask(fields: dict[str, Any], name: str) -> None:
    assert load.choose_attention(job_of(**fields)) == name


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_card_before_ampere_gets_keys_for_every_head(
    monkeypatch: pytest.MonkeyPatch, side: str
) -> None:
    heads = []

    def attend(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any
    ) -> torch.Tensor:
        heads.append((key.shape[1], value.shape[1]))
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, **options)

    monkeypatch.setattr(attention, "sdpa_shares_keys", lambda: False)
    monkeypatch.setattr(attention, "scaled_dot_product_attention", attend)
    found = learn(model_of("llama", "causal"), padded(side))
    assert_same(found, learn(model_of("llama"), padded(side)))
    # Padding on the left has a mask, and then transformers repeats the keys itself.
    assert heads == ([(4, 4)] * 3 if side == "right" else [])
    monkeypatch.undo()
    attention.register()


# Leaving work to SDPA, or refusing it


@pytest.mark.parametrize("attn_implementation", ["causal", "varlen"])
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_questions_padded_on_the_left_are_answered_as_with_sdpa(
    family: str, attn_implementation: str
) -> None:
    (batch,) = padded("left")
    inputs = {name: batch["inputs"][name] for name in ("input_ids", "attention_mask")}
    answers = [
        model_of(family, name).eval().generate(**inputs, max_new_tokens=8, do_sample=False)
        for name in (attn_implementation, "sdpa")
    ]
    assert torch.equal(*answers)


@pytest.mark.parametrize(
    ("config", "extra"),
    [(Gemma2Config(**TINY), "caps its scores"), (GptOssConfig(**TINY), "adds sinks")],
)
def test_a_model_with_more_than_attention_is_refused_by_name(config: Any, extra: str) -> None:
    model = AutoModelForCausalLM.from_config(config, attn_implementation="varlen")
    with pytest.raises(ValueError, match=f"attn_implementation varlen .*{extra}.*choose"):
        learn(model, packed())


def test_a_model_with_attention_dropout_is_refused_for_packed_rows() -> None:
    model = model_of("llama", "varlen")
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    learn(model, [{"inputs": {"input_ids": sequences()[0]}, "labels": sequences()[0]}])
    with pytest.raises(ValueError, match="attention_dropout"):
        learn(model, packed())
