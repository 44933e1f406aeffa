"""Attention kernels without masks: `varlen` for rows that hold several sequences, `causal` for rows
padded at their end.

Owns these two names in transformers. Both compute the same as `sdpa` for all tokens that are no
padding, and fall back to it where they have nothing better: padding on the left, a cache, dropout.
Never chooses between them (load.choose_attention does).

Shapes: S tokens of all rows, N sequences, H query heads, K key and value heads, D numbers a head.
"""

import inspect
from collections.abc import Callable, Mapping
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
"""True if the kernel lets query heads share keys without copies: from torch 2.12 on."""
MIN_CAPABILITY = (8, 0)
MAX_HEAD_SIZE = 256
UNSUPPORTED = {
    "softcap": "caps its scores",
    "s_aux": "adds sinks to its scores",
    "position_bias": "adds to its scores",
}
"""Argument that a model passes to its attention -> what it does beyond plain attention."""


@dataclass(frozen=True)
class Sequences:
    """Places of the sequences in a batch. Found once per forward pass, and passed as its mask."""

    lengths: tuple[int, ...]
    """Length of each of the N sequences, row after row."""
    ends: torch.Tensor
    """[N + 1] int32: 0, then the number of tokens up to the end of each sequence."""
    longest: int
    window: int | None
    """Tokens that a token attends to, itself included; None for all up to itself."""
    has_kernel: bool
    """True if the device can compute all sequences at once."""


def register() -> None:
    """Register both names in transformers. Must be called before a model is loaded with one."""
    causal = sdpa_attention_forward if sdpa_shares_keys() else attend_with_repeated_keys
    AttentionInterface.register("causal", causal)
    AttentionMaskInterface.register("causal", _mask_unless_padded_right)
    AttentionInterface.register("varlen", _attend_varlen)
    AttentionMaskInterface.register("varlen", _find_sequences)


def sdpa_shares_keys() -> bool:
    """Return False on a card before Ampere.

    Without a mask transformers leaves keys shared between query heads. On older cards only
    PyTorch's plain kernel takes them so, and it writes out every score.
    """
    return not torch.cuda.is_available() or torch.cuda.get_device_capability() >= MIN_CAPABILITY


def attend_with_repeated_keys(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Compute SDPA; where there is no mask, with keys and values repeated for every query head."""
    is_plain = attention_mask is None and query.shape[2] == key.shape[2]
    is_plain = is_plain and all(options.get(name) is None for name in UNSUPPORTED)
    if not is_plain or query.shape[1] == key.shape[1]:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    num_sharing = query.shape[1] // key.shape[1]
    out = scaled_dot_product_attention(
        query,
        key.repeat_interleave(num_sharing, dim=1),
        value.repeat_interleave(num_sharing, dim=1),
        dropout_p=options.get("dropout", 0.0),
        is_causal=True,
        scale=options.get("scaling"),
    )
    return out.transpose(1, 2).contiguous(), None


def pads_at_most_right(request: Mapping[str, Any]) -> bool:
    """Return True if each token has its own query and no row has a token after padding.

    Waits for the device.
    """
    padding_mask = request.get("attention_mask")
    if request["q_length"] != request["kv_length"]:
        return False
    if padding_mask is None:
        return True
    return not bool((padding_mask[:, 1:] & ~padding_mask[:, :-1]).any())


# Masks, as transformers asks for them


def _mask_unless_padded_right(**request: Any) -> torch.Tensor | None:
    """Return SDPA's mask; None for padding at the end, which causal attention never looks at.

    Without a mask SDPA takes its fastest kernel and repeats no keys and values.
    """
    if request.get("allow_is_causal_skip", True) and pads_at_most_right(request):
        request["attention_mask"] = None
    return sdpa_mask(**request)


def _find_sequences(**request: Any) -> Sequences | torch.Tensor | None:
    """Return the sequences of packed rows or of rows longer than the window, else SDPA's mask."""
    window = request.get("local_size")
    is_within_window = window is None or request["kv_length"] < window
    is_plain_causal = request.get("allow_is_causal_skip", True) and is_within_window
    if not is_plain_causal and not request.get("use_vmap") and pads_at_most_right(request):
        device = request["device"]
        lengths = _sequence_lengths(
            request["mask_function"], request["batch_size"], request["q_length"], device
        )
        if lengths:
            ends = torch.tensor((0, *lengths), device=device).cumsum(0, dtype=torch.int32)
            return Sequences(lengths, ends, max(lengths), window, has_kernel(device))
    return _mask_unless_padded_right(**request)


def _sequence_lengths(
    attends: Callable[..., torch.Tensor], num_rows: int, length: int, device: torch.device
) -> tuple[int, ...]:
    """Return the lengths of the sequences in all rows; () if attention is not causal.

    `attends(row, head, query, key)` is the mask function of transformers. A token that does not
    attend to the one before it begins a sequence. Waits for the device, once per forward pass.
    """
    rows = torch.arange(num_rows, device=device)[:, None]
    tokens = torch.arange(length, device=device)[None]
    earlier, later = tokens[:, :-1], tokens[:, 1:]
    if bool(attends(rows, 0, earlier, later).any()):
        return ()
    begins = torch.ones(num_rows, length, dtype=torch.bool, device=device)
    begins[:, 1:] = ~attends(rows, 0, later, earlier)
    starts = [*begins.flatten().nonzero().flatten().tolist(), num_rows * length]
    return tuple(end - start for start, end in pairwise(starts))


# Attention, as transformers calls it


def _attend_varlen(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Sequences | torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention within each sequence.

    Inputs are [rows, heads, tokens, D], the output is [rows, tokens, heads, D]. Raises ValueError
    for a model that needs more.
    """
    for name, what in UNSUPPORTED.items():
        if options.get(name) is not None:
            raise _unsupported(f"a model that {what}")
    if not isinstance(attention_mask, Sequences):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    if options.get("dropout"):
        raise _unsupported("a model with attention_dropout")
    query_SHD, key_SKD, value_SKD = (_flatten_rows(states) for states in (query, key, value))
    attend = _attend_one_by_one
    if attention_mask.has_kernel and fits_kernel(query_SHD, value_SKD):
        attend = _attend_at_once
    out_SHD = attend(query_SHD, key_SKD, value_SKD, attention_mask, options.get("scaling"))
    return out_SHD.reshape(query.shape[0], query.shape[2], *out_SHD.shape[1:]), None


def _flatten_rows(states: torch.Tensor) -> torch.Tensor:
    """Join all rows, in autocast's precision: autocast itself only handles PyTorch's functions."""
    device = states.device.type
    if torch.is_autocast_enabled(device):
        states = states.to(torch.get_autocast_dtype(device))
    return states.transpose(1, 2).flatten(0, 1)


def has_kernel(device: torch.device) -> bool:
    """Return True if the device can compute all sequences at once."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= MIN_CAPABILITY


def fits_kernel(query_SHD: torch.Tensor, value_SKD: torch.Tensor) -> bool:
    """Return True if the kernel takes heads of this size and precision."""
    size = query_SHD.shape[-1]
    is_half = query_SHD.dtype in (torch.float16, torch.bfloat16)
    return is_half and size == value_SKD.shape[-1] and size <= MAX_HEAD_SIZE and size % 8 == 0


def _attend_at_once(
    query_SHD: torch.Tensor,
    key_SKD: torch.Tensor,
    value_SKD: torch.Tensor,
    sequences: Sequences,
    scale: float | None,
) -> torch.Tensor:
    options: dict[str, Any] = {"enable_gqa": True}
    if not KERNEL_SHARES_KEYS:
        options = {}
        key_SKD, value_SKD = _repeat_for_queries(query_SHD, key_SKD, value_SKD)
    tokens_before = -1 if sequences.window is None else sequences.window - 1
    out: Any = varlen_attn(
        query_SHD,
        key_SKD,
        value_SKD,
        sequences.ends,
        sequences.ends,
        sequences.longest,
        sequences.longest,
        scale=scale,
        window_size=(tokens_before, 0),  # 0 tokens after
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
    """Compute the same without the kernel: slower, but on every device and in every precision."""
    key_SHD, value_SHD = _repeat_for_queries(query_SHD, key_SKD, value_SKD)
    outputs = []
    for query, key, value in zip(
        query_SHD.split(sequences.lengths),
        key_SHD.split(sequences.lengths),
        value_SHD.split(sequences.lengths),
        strict=True,
    ):
        mask = _window_mask(len(query), sequences.window, query.device)
        out = scaled_dot_product_attention(
            query.transpose(0, 1),
            key.transpose(0, 1),
            value.transpose(0, 1),
            mask,
            is_causal=mask is None,
            scale=scale,
        )
        outputs.append(out.transpose(0, 1))
    return torch.cat(outputs)


def _window_mask(length: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """Return which tokens attend to which within a window; None if the sequence is shorter."""
    if window is None or length <= window:
        return None
    square = torch.ones(length, length, dtype=torch.bool, device=device)
    return square.tril() & square.triu(1 - window)


def _repeat_for_queries(
    query_SHD: torch.Tensor, *states_SKD: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Repeat keys or values for every query head that shares them."""
    return tuple(
        states.repeat_interleave(query_SHD.shape[1] // states.shape[1], dim=1)
        for states in states_SKD
    )


def _unsupported(what: str) -> ValueError:
    return ValueError(f"attn_implementation varlen cannot compute {what}: choose sdpa or eager.")
