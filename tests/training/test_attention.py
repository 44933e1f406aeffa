"""Attention without masks: where sequences are found, what the kernel is asked, and what is refused or left to SDPA."""

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
    """The device can compute all sequences at once, in any dtype."""
    monkeypatch.setattr(attention, "has_kernel", lambda device: True)
    monkeypatch.setattr(attention, "fits_kernel", lambda query, value: True)


def mask_of(model: Any, batch: dict[str, Any], makes: Any = create_causal_mask) -> Any:
    """What the layers of a model get as their mask."""
    inputs = batch["inputs"]
    return makes(
        config=model.config,
        inputs_embeds=torch.zeros(*inputs["input_ids"].shape, 8),
        attention_mask=inputs.get("attention_mask"),
        past_key_values=None,
        position_ids=inputs.get("position_ids"),
    )


# Where the sequences are


@pytest.mark.parametrize("num_rows", [1, 2])
def test_sequences_are_found_in_packed_rows_and_no_mask_is_built(num_rows: int) -> None:
    found = mask_of(model_of("llama", "varlen"), *packed(num_rows))
    assert (found.lengths, found.longest, found.window) == ((9, 6, 1, 14), 14, None)
    assert found.ends.tolist() == [0, 9, 15, 16, 30] and found.ends.dtype == torch.int32


def test_a_window_is_kept_with_the_sequences() -> None:
    model = model_of("mistral", "varlen")
    found = mask_of(model, *packed(), create_sliding_window_causal_mask)
    assert (found.lengths, found.window) == ((9, 6, 1, 14), 5)


def test_rows_longer_than_the_window_are_sequences_whatever_pads_them() -> None:
    found = mask_of(model_of("mistral", "varlen"), *padded(), create_sliding_window_causal_mask)
    assert (found.lengths, found.window) == ((14, 14, 14, 14), 5)


@pytest.mark.parametrize("attn_implementation", ["causal", "varlen"])
def test_padding_needs_a_mask_on_the_left_alone(attn_implementation: str) -> None:
    model = model_of("llama", attn_implementation)
    assert mask_of(model, *padded("right")) is None
    assert mask_of(model, *padded("left")).shape == (4, 1, 14, 14)


def test_tokens_that_see_later_ones_get_a_mask() -> None:
    def makes(**inputs: Any) -> Any:
        return create_causal_mask(
            **inputs, block_sequence_ids=torch.tensor([[-1] * 9 + [0] * 4 + [-1] * 17])
        )

    assert mask_of(model_of("llama", "varlen"), *packed(), makes).shape == (1, 1, 30, 30)


# What the kernel is asked


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batches", [packed, padded])
def test_the_kernel_teaches_what_sdpa_teaches(family: str, batches: Any) -> None:
    assert_same(learn(model_of(family, "varlen"), batches()), learn(model_of(family), batches()))


@pytest.mark.usefixtures("kernel")
def test_a_kernel_that_cannot_share_keys_gets_them_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def without_sharing(
        query: torch.Tensor, key: torch.Tensor, *rest: Any, **options: Any
    ) -> torch.Tensor:
        asked.append((query.shape == key.shape, "enable_gqa" in options))
        return tests.builders.varlen_on_cpu.varlen.varlen_attn(query, key, *rest, **options)

    monkeypatch.setattr(attention, "varlen_attn", without_sharing)
    monkeypatch.setattr(attention, "KERNEL_SHARES_KEYS", False)  # as in torch 2.11
    assert_same(learn(model_of("llama", "varlen"), packed()), learn(model_of("llama"), apart()))
    assert set(asked) == {(True, False)}


@pytest.mark.usefixtures("kernel")
def test_the_kernel_takes_what_autocast_gives_to_pytorchs_own_functions(
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
def test_layers_recomputed_through_the_kernel_teach_the_same() -> None:
    model = adapted(model_of("llama", "varlen"))
    model.gradient_checkpointing_enable()
    assert_same(learn(model, packed()), learn(adapted(model_of("llama")), packed()))


@pytest.mark.usefixtures("kernel")
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning"
)  # from within PyTorch's compiler
def test_layers_compile_without_a_break_and_once_more_for_all_other_lengths() -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter, model = CompileCounterWithBackend("aot_eager"), model_of("llama", "varlen")
    for layer in model.model.layers:
        layer.compile(backend=counter, fullgraph=True)
    for lengths in ((9, 6), (7, 3, 11), (2, 14, 5, 6), (20, 13)):
        ids, positions = (
            torch.arange(sum(lengths))[None],
            torch.cat([torch.arange(length) for length in lengths]),
        )
        model(input_ids=ids, position_ids=positions[None], use_cache=False).logits.sum().backward()
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
    assert (
        attention.fits_kernel(torch.zeros(3, 4, size, dtype=dtype), torch.zeros(3, 2, value_size))
        == fits
    )


# Which kernel a job gets


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
def test_rows_padded_at_their_end_go_without_a_mask(fields: dict[str, Any], name: str) -> None:
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
    assert_same(
        learn(model_of("llama", "causal"), padded(side)), learn(model_of("llama"), padded(side))
    )
    assert heads == ([(4, 4)] * 3 if side == "right" else []), (
        "transformers has copies made where there is a mask"
    )
    monkeypatch.undo()
    attention.register()


# What is left to SDPA, or refused


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
    ("config", "what"),
    [(Gemma2Config(**TINY), "caps its scores"), (GptOssConfig(**TINY), "adds sinks")],
)
def test_a_model_with_more_than_attention_is_refused_by_name(config: Any, what: str) -> None:
    model = AutoModelForCausalLM.from_config(config, attn_implementation="varlen")
    with pytest.raises(ValueError, match=f"attn_implementation varlen .*{what}.*choose"):
        learn(model, packed())


def test_a_model_that_drops_out_scores_is_refused_where_rows_are_packed() -> None:
    model = model_of("llama", "varlen")
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    learn(model, [{"inputs": {"input_ids": sequences()[0]}, "labels": sequences()[0]}])
    with pytest.raises(ValueError, match="attention_dropout"):
        learn(model, packed())
