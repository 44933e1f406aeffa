"""Register a CPU version of PyTorch's variable-length attention kernel, which only CUDA has.

With it, tests without a GPU can run models that use the kernel, forward and backward. Importing
this module registers it.

Shapes: S tokens, H heads of queries, K of keys and values, D numbers a head.
"""

from typing import Any

import torch
from torch.nn.attention import varlen

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _weights_HSS(
    query: torch.Tensor,
    key: torch.Tensor,
    ends: torch.Tensor,
    scale: float | None,
    window: list[int],
) -> torch.Tensor:
    """Return the attention weights: each token sees those before it in its sequence.

    It sees at most `window[0]` tokens back; -1 is no limit.
    """
    tokens = torch.arange(len(query))
    sequence = torch.bucketize(tokens, ends, right=True)
    distance = tokens[:, None] - tokens[None]
    sees = (sequence[:, None] == sequence[None]) & (distance >= 0)
    if window[0] >= 0:
        sees &= distance <= window[0]
    scores = torch.einsum("shd,thd->hst", query, _for_each_query(query, key)) * (
        scale or query.shape[-1] ** -0.5
    )
    return scores.masked_fill(~sees, float("-inf")).softmax(-1)


def _for_each_query(query: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    return states.repeat_interleave(query.shape[1] // states.shape[1], dim=1)


@varlen._varlen_attn.register_kernel("cpu")
def _forward(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ends: torch.Tensor, *rest: Any
) -> Tensors:
    _, max_q, max_k, is_causal, scale, window, *_ = rest
    assert ends.dtype == torch.int32
    assert max_q == max_k == int(ends.diff().max())
    assert window[1] == 0
    assert is_causal == (window[0] == -1)
    weights = _weights_HSS(query, key, ends, scale, window)
    out = torch.einsum("hst,thd->shd", weights, _for_each_query(query, value))
    return (
        out.contiguous(),
        torch.zeros(query.shape[1], len(query)),
        torch.zeros(2, dtype=torch.uint64),
    )


@varlen._varlen_attn_backward.register_kernel("cpu")
def _backward(
    grad: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any
) -> Tensors:
    _, _, ends, _, _, _, _, _, scale, window = rest
    weights = _weights_HSS(query, key, ends, scale, window)
    of_weights = torch.einsum("shd,thd->hst", grad, _for_each_query(query, value))
    of_scores = weights * (of_weights - (of_weights * weights).sum(-1, keepdim=True))
    of_scores = of_scores * (scale or query.shape[-1] ** -0.5)
    return (
        torch.einsum("hst,thd->shd", of_scores, _for_each_query(query, key)).contiguous(),
        _shared(torch.einsum("hst,shd->thd", of_scores, query), key),
        _shared(torch.einsum("hst,shd->thd", weights, grad), value),
    )


def _shared(grad_SHD: torch.Tensor, states_SKD: torch.Tensor) -> torch.Tensor:
    """Return the gradients of keys or values, summed over the heads of queries that share them."""
    tokens, heads, size = states_SKD.shape
    return grad_SHD.reshape(tokens, heads, -1, size).sum(2)
