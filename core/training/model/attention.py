"""Attention without masks: `varlen` for rows that hold several sequences, `causal` for rows padded at their end.

Owns these two names in transformers. Both compute what `sdpa` computes, wherever the loss looks, and leave to it what
they have no better way for: padding on the left, a cache, dropout. Never chooses between them.

Shapes: S tokens of all rows, N sequences, H heads of queries, K of keys and values, D numbers a head.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

KERNEL_SHARES_KEYS = "enable_gqa" in inspect.signature(varlen_attn).parameters
"""Among the heads of the queries, without copies: from torch 2.12 on."""
LEAST_CAPABILITY = (8, 0)
LARGEST_HEAD = 256
EXTRAS = {
    "softcap": "caps its scores",
    "s_aux": "adds sinks to its scores",
    "position_bias": "adds to its scores",
}
"""What a model hands to its attention if it is more than this -> what it does with it."""


@dataclass(frozen=True)
class Sequences:
    """Where the sequences of a batch lie: found once in a forward pass, in place of its mask, for all layers."""

    lengths: tuple[int, ...]
    """Of the N sequences, row after row."""
    ends: torch.Tensor
    """[N + 1] int32: 0, then how many of the S tokens there are up to the end of each sequence."""
    longest: int
    window: int | None
    """How many tokens one looks at, itself among them; None is all up to itself."""
    has_kernel: bool
    """The device can compute all of them at once."""


def register() -> None:
    """Makes the names known to transformers; to be called before a model is loaded with one of them."""
    AttentionInterface.register(
        "causal", sdpa_attention_forward if _shares_keys() else _attend_with_own_keys
    )
    AttentionMaskInterface.register("causal", _mask_but_right_padding)
    AttentionInterface.register("varlen", _attend)
    AttentionMaskInterface.register("varlen", _find_sequences)


def _shares_keys() -> bool:
    """False on a card before Ampere: without a mask transformers leaves keys and values shared among the heads of the
    queries, and there only PyTorch's plain kernel takes them so, which writes out every score."""
    return not torch.cuda.is_available() or torch.cuda.get_device_capability() >= LEAST_CAPABILITY


def _attend_with_own_keys(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """SDPA with keys and values of its own for every head of the queries where there is no mask."""
    is_plain = attention_mask is None and query.shape[2] == key.shape[2]
    is_plain = is_plain and all(options.get(name) is None for name in EXTRAS)
    if not is_plain or query.shape[1] == key.shape[1]:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    key, value = (
        states.repeat_interleave(query.shape[1] // states.shape[1], dim=1)
        for states in (key, value)
    )
    dropout, scale = options.get("dropout", 0.0), options.get("scaling")
    out = scaled_dot_product_attention(
        query, key, value, dropout_p=dropout, is_causal=True, scale=scale
    )
    return out.transpose(1, 2).contiguous(), None


def check(model_class: Any) -> None:
    """Raises ValueError if the attention of a class of models is more than what is computed here."""
    if not (model_class._supports_sdpa and model_class._supports_attention_backend):
        raise _refusal(f"the attention of {model_class.__name__}")


def _mask_but_right_padding(**asked: Any) -> torch.Tensor | None:
    """SDPA's mask, but none for padding at the end of rows: causal attention never looks at what comes later.

    Without a mask SDPA takes its fastest kernel, and copies no keys and values for the queries' heads.
    """
    if asked.get("allow_is_causal_skip", True) and _pads_at_most_right(asked):
        asked["attention_mask"] = None
    return sdpa_mask(**asked)


def _find_sequences(**asked: Any) -> Sequences | torch.Tensor | None:
    """The sequences where rows are packed, or longer than the model's window; else the mask that SDPA needs."""
    window = asked.get("local_size")
    is_plainly_causal = asked.get("allow_is_causal_skip", True) and (
        window is None or asked["kv_length"] < window
    )
    if not is_plainly_causal and not asked.get("use_vmap") and _pads_at_most_right(asked):
        device = asked["device"]
        if lengths := _lengths(
            asked["mask_function"], asked["batch_size"], asked["q_length"], device
        ):
            ends = torch.tensor((0, *lengths), device=device).cumsum(0, dtype=torch.int32)
            return Sequences(lengths, ends, max(lengths), window, _has_kernel(device))
    return _mask_but_right_padding(**asked)


def _pads_at_most_right(asked: dict[str, Any]) -> bool:
    """True where each token has its own query, and no row has a token after padding. Waits for the device."""
    padding = asked.get("attention_mask")
    if asked["q_length"] != asked["kv_length"]:
        return False
    return padding is None or not bool((padding[:, 1:] & ~padding[:, :-1]).any())


def _lengths(
    sees: Callable[..., torch.Tensor], num_rows: int, length: int, device: torch.device
) -> tuple[int, ...]:
    """The lengths of the sequences in all rows: a token that does not see the one before it begins one.

    Empty if some token sees the one after it: that is not causal. Waits for the device, once in a forward pass.
    """
    rows, tokens = (
        torch.arange(num_rows, device=device)[:, None],
        torch.arange(length, device=device)[None],
    )
    earlier, later = tokens[:, :-1], tokens[:, 1:]
    begins = torch.ones(num_rows, length, dtype=torch.bool, device=device)
    begins[:, 1:] = ~sees(rows, 0, later, earlier)
    if bool(sees(rows, 0, earlier, later).any()):
        return ()
    starts = [*begins.flatten().nonzero().flatten().tolist(), num_rows * length]
    return tuple(end - start for start, end in pairwise(starts))


def _has_kernel(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Sequences | torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention within each sequence, as transformers calls it: rows x heads x tokens x D in, heads and tokens swapped
    out. Raises ValueError for a model that asks for more.
    """
    for name, what in EXTRAS.items():
        if options.get(name) is not None:
            raise _refusal(f"a model that {what}")
    if not isinstance(attention_mask, Sequences):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    if options.get("dropout"):
        raise _refusal("a model with attention_dropout")
    query_SHD, key_SKD, value_SKD = (_in_a_row(states) for states in (query, key, value))
    all_at_once = attention_mask.has_kernel and _fits_kernel(query_SHD, value_SKD)
    attend = _attend_at_once if all_at_once else _attend_one_by_one
    out_SHD = attend(query_SHD, key_SKD, value_SKD, attention_mask, options.get("scaling"))
    return out_SHD.reshape(query.shape[0], query.shape[2], *out_SHD.shape[1:]), None


def _in_a_row(states: torch.Tensor) -> torch.Tensor:
    """All tokens, rows after another; in autocast's dtype, which PyTorch sees to for its own functions alone."""
    device = states.device.type
    if torch.is_autocast_enabled(device):
        states = states.to(torch.get_autocast_dtype(device))
    return states.transpose(1, 2).flatten(0, 1)


def _fits_kernel(query_SHD: torch.Tensor, value_SKD: torch.Tensor) -> bool:
    size = query_SHD.shape[-1]
    is_half = query_SHD.dtype in (torch.float16, torch.bfloat16)
    return is_half and size == value_SKD.shape[-1] and size <= LARGEST_HEAD and size % 8 == 0


def _attend_at_once(
    query_SHD: torch.Tensor,
    key_SKD: torch.Tensor,
    value_SKD: torch.Tensor,
    sequences: Sequences,
    scale: float | None,
) -> torch.Tensor:
    options: dict[str, Any] = {"enable_gqa": True} if KERNEL_SHARES_KEYS else {}
    if not KERNEL_SHARES_KEYS:
        key_SKD, value_SKD = _for_each_query(query_SHD, key_SKD, value_SKD)
    ends, longest = sequences.ends, sequences.longest
    tokens_before = -1 if sequences.window is None else sequences.window - 1
    out: Any = varlen_attn(
        *(query_SHD, key_SKD, value_SKD, ends, ends, longest, longest),
        scale=scale,
        window_size=(tokens_before, 0),  # none after
        **options,
    )
    return out


def _attend_one_by_one(
    query_SHD: torch.Tensor,
    key_SKD: torch.Tensor,
    value_SKD: torch.Tensor,
    sequences: Sequences,
    scale: float | None,
) -> torch.Tensor:
    """The same where there is no such kernel: slower, exact on every device and in every dtype."""
    key_SHD, value_SHD = _for_each_query(query_SHD, key_SKD, value_SKD)
    parts = (states.split(sequences.lengths) for states in (query_SHD, key_SHD, value_SHD))
    found = []
    for query, key, value in zip(*parts, strict=True):
        band = _band(len(query), sequences.window, query.device)
        query, key, value = (states.transpose(0, 1) for states in (query, key, value))
        out = scaled_dot_product_attention(
            query, key, value, band, is_causal=band is None, scale=scale
        )
        found.append(out.transpose(0, 1))
    return torch.cat(found)


def _band(length: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """Which tokens see which within a window; None where it is longer than the sequence."""
    if window is None or length <= window:
        return None
    square = torch.ones(length, length, dtype=torch.bool, device=device)
    return square.tril() & square.triu(1 - window)


def _for_each_query(query_SHD: torch.Tensor, *states_SKD: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Keys and values repeated for every head of the queries that shares them."""
    return tuple(
        states.repeat_interleave(query_SHD.shape[1] // states.shape[1], dim=1)
        for states in states_SKD
    )


def _refusal(what: str) -> ValueError:
    return ValueError(f"attn_implementation varlen cannot compute {what}: choose sdpa or eager.")
