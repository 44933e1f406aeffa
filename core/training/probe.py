"""The probe: forward and backward on the longest batch before the first step, so that a lack of memory shows in the
first seconds or not at all. Leaves no trace in weights, gradients, random numbers or metrics.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

ROWS_AT_ONCE = 10_000
BYTES_OF_STATES = {"sgd": 0.0, "adafactor": 0.0, "lion_8bit": 1.02, "adamw_8bit": 2.03}
"""Optimizer -> bytes of its states per number that trains; paged ones take none of the allocator's, and AdamW keeps
two numbers as wide as the parameter."""


def has_limited_memory() -> bool:
    """True on a GPU. A CPU swaps rather than fails, and the demo should start at once."""
    return torch.cuda.is_available()


def probe(trainer: Any) -> None:
    """Takes the longest batch of a trainer through forward and backward, with room kept for the optimizer's states.

    Twice if gradients accumulate: from the second batch on they are there beforehand. Raises what a step would raise.
    """
    rows = longest_rows(trainer.train_dataset, trainer.args.per_device_train_batch_size)
    kept = trainer._remove_unused_columns(trainer.train_dataset.select(rows), description="training")
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    model = trainer.model_wrapped
    with _without_a_trace(trainer, model), _room_for_states(trainer):
        for _ in range(min(2, trainer.args.gradient_accumulation_steps)):
            trainer.training_step(model, trainer.data_collator(list(kept)))
    longest = max(len(row["input_ids"]) for row in kept)
    print(f"probe: {len(rows)} rows of up to {longest} tokens, the longest there are, went through", flush=True)


def longest_rows(dataset: Any, num_rows: int) -> list[int]:
    """Indices of the longest rows, without making Python lists of all tokens."""
    import pyarrow.compute as pc

    lengths: list[int] = []
    for batch in dataset.with_format("arrow").iter(ROWS_AT_ONCE):
        lengths += pc.list_value_length(batch["input_ids"]).to_pylist()
    return sorted(range(len(lengths)), key=lambda index: lengths[index], reverse=True)[:num_rows]


@contextmanager
def _without_a_trace(trainer: Any, model: nn.Module) -> Iterator[None]:
    """What TRL counts per step, random numbers and gradients are afterwards as they were."""
    counted = {
        name: copy.deepcopy(vars(trainer)[name])
        for name in ("_metrics", "_total_train_tokens")
        if name in vars(trainer)
    }
    with torch.random.fork_rng():
        yield
    model.zero_grad(set_to_none=True)
    vars(trainer).update(counted)


@contextmanager
def _room_for_states(trainer: Any) -> Iterator[None]:
    """Memory as large as the states that the first step will make, unless a checkpoint has brought them."""
    parameters = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    room = None
    if not getattr(trainer.optimizer, "state", None) and not trainer.args.optim.startswith("paged"):
        num_bytes = sum(
            parameter.numel() * BYTES_OF_STATES.get(str(trainer.args.optim), 2 * parameter.element_size())
            for parameter in parameters
        )
        room = torch.empty(int(num_bytes), dtype=torch.uint8, device=parameters[0].device)
    yield
    del room
