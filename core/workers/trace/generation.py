"""Trace generation: the real `generate` on prompts without data, its first step and its last.

Source: GRPOTrainer._generate_single_turn in trl/trainer/grpo_trainer.py.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig
from transformers.generation.utils import StopCheck

from .allocation_log import AllocationLog

STEPS = 2
"""The first reads the prompts, the second is the last of the answer, when the cache is full."""


@dataclass(frozen=True)
class Prompts:
    """Prompts to answer at once, all of one length."""

    rows: int
    tokens: int
    answer_tokens: int


@torch.no_grad()
def generate(
    model: Any, prompts: Prompts, log: AllocationLog, phase: str, *, do_sample: bool
) -> None:
    """Trace the answers to prompts, in segments of a phase. The caller provides the autocast."""
    model.generation_config = GenerationConfig()  # without a token that ends an answer
    input_ids = torch.zeros(prompts.rows, prompts.tokens, dtype=torch.long)
    cache = DynamicCache(config=model.config.get_text_config())
    log.enter(f"{phase}/prompt")
    stop_length = prompts.tokens + STEPS
    settings = GenerationConfig(max_new_tokens=STEPS, do_sample=do_sample)
    if do_sample:
        settings.top_k = 0
    with (
        _without_checkpointing(model),
        _skip_to_last_token(model, cache, prompts, lambda: log.enter(f"{phase}/answer")),
        _assumed_values(stop_length),
    ):
        model.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            past_key_values=cache,
            generation_config=settings,
        )


@contextmanager
def _without_checkpointing(model: Any) -> Iterator[None]:
    """Switch checkpointing off, as TRL does: checkpointed layers keep no cache."""
    checkpointed = [
        module for module in model.modules() if getattr(module, "gradient_checkpointing", False)
    ]
    for module in checkpointed:
        module.gradient_checkpointing = False
    yield
    for module in checkpointed:
        module.gradient_checkpointing = True


@contextmanager
def _skip_to_last_token(
    model: Any, cache: DynamicCache, prompts: Prompts, enter: Callable[[], None]
) -> Iterator[None]:
    """Extend the cache after the prompts were read to what it is before the last token."""
    passes = count()

    def begin_pass(*_: Any) -> None:
        if next(passes) > 0:
            enter()
            _extend_cache(cache, prompts.tokens + prompts.answer_tokens - 1)

    hook = model.get_input_embeddings().register_forward_pre_hook(begin_pass, prepend=True)
    yield
    hook.remove()


def _extend_cache(cache: DynamicCache, num_tokens: int) -> None:
    """Enlarge every layer to `num_tokens`; a sliding window keeps those that it looks back on."""
    layers: Any = cache.layers
    for layer in layers:
        num_kept = num_tokens
        if layer.is_sliding:
            num_kept = min(num_tokens, layer.sliding_window - 1)
            layer.cumulative_length = num_tokens
        rows, heads, _, width = layer.keys.shape
        layer.keys = layer.keys.new_empty(rows, heads, num_kept, width)
        layer.values = layer.values.new_empty(rows, heads, num_kept, layer.values.shape[-1])


@contextmanager
def _assumed_values(stop_length: int) -> Iterator[None]:
    """Assume results where `generate` looks at values, which traced tensors lack.

    Prompts differ in length, no token is out of range, and answers end at a length.
    """
    with (
        patch.object(StopCheck, "__call__", lambda *found: found[-1] >= stop_length),
        patch.object(Tensor, "all", lambda *_: False),
        patch.object(Tensor, "any", lambda *_: False),
    ):
        yield
