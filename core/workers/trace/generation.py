"""Answers drawn in the trace: the real `generate` on prompts without data, its first step and its last.

Source: GRPOTrainer._generate_single_turn in trl/trainer/grpo_trainer.py.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig
from transformers.generation.utils import StopCheck

from .allocation_log import Ledger

STEPS = 2
"""One reads the prompts, one is the last of the answer, when the cache is full."""


@torch.no_grad()
def draw(model: Any, num_rows: int, num_tokens: int, answer_tokens: int, ledger: Ledger) -> None:
    """Answers of so many tokens, in rows of `num_tokens`, prompt and answer. Under the autocast of its caller."""
    model.generation_config = GenerationConfig()  # without a word that ends an answer
    prompts = torch.zeros(num_rows, num_tokens - answer_tokens, dtype=torch.long)
    cache = DynamicCache(config=model.config.get_text_config())
    ledger.enter("generation/prompt")
    stops_at = prompts.shape[1] + STEPS
    with (
        _without_checkpointing(model),
        _up_to_the_last(model, cache, num_tokens, ledger),
        _values_unknown(stops_at),
    ):
        model.generate(
            input_ids=prompts,
            attention_mask=torch.ones_like(prompts),
            past_key_values=cache,
            generation_config=GenerationConfig(max_new_tokens=STEPS, do_sample=True, top_k=0),
        )


@contextmanager
def _without_checkpointing(model: Any) -> Iterator[None]:
    """Layers that are recomputed keep no cache, so that TRL has them not recomputed meanwhile."""
    recomputed = [
        module for module in model.modules() if getattr(module, "gradient_checkpointing", False)
    ]
    for module in recomputed:
        module.gradient_checkpointing = False
    yield
    for module in recomputed:
        module.gradient_checkpointing = True


@contextmanager
def _up_to_the_last(
    model: Any, cache: DynamicCache, num_tokens: int, ledger: Ledger
) -> Iterator[None]:
    """Once the prompts are read, the cache is as it is before the last token."""
    passes = count()

    def begin_pass(*_: Any) -> None:
        if next(passes):
            ledger.enter("generation/answer")
            _extend(cache, num_tokens - 1)

    hook = model.get_input_embeddings().register_forward_pre_hook(begin_pass)
    yield
    hook.remove()


def _extend(cache: DynamicCache, num_tokens: int) -> None:
    """Makes room for so many tokens in every layer; a windowed one keeps those that its next token looks back on."""
    layers: Any = cache.layers
    for layer in layers:
        kept = num_tokens
        if layer.is_sliding:
            kept = min(num_tokens, layer.sliding_window - 1)
            layer.cumulative_length = num_tokens
        rows, heads, _, width = layer.keys.shape
        layer.keys = layer.keys.new_empty(rows, heads, kept, width)
        layer.values = layer.values.new_empty(rows, heads, kept, layer.values.shape[-1])


@contextmanager
def _values_unknown(stops_at: int) -> Iterator[None]:
    """Where generate looks at values, prompts differ in length, no word is out of range, answers end at a length."""
    with (
        patch.object(StopCheck, "__call__", lambda *found: found[-1] >= stops_at),
        patch.object(Tensor, "all", lambda *_: False),
        patch.object(Tensor, "any", lambda *_: False),
    ):
        yield
