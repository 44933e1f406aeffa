"""Probe: forward and backward on the longest batch before the first step, so that a lack of memory
shows at once.

Leaves weights, gradients, random numbers and metrics as they were.
"""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.training_args import OptimizerNames

ROWS_AT_ONCE = 10_000
BYTES_OF_STATES = {
    "sgd": 0.0,
    "adafactor": 0.0,
    "lion_8bit": 1.02,
    "adamw_8bit": 2.03,
    "adamw_32bit": 8.0,
}
"""Optimizer -> bytes of its states per trained parameter. All others are AdamW: two states as wide
as the parameter."""


def has_limited_memory() -> bool:
    """Return True on a GPU. A CPU swaps instead of failing, and the demo should start at once."""
    return torch.cuda.is_available()


def probe(trainer: Any) -> None:
    """Run the longest batch of a trainer forward and backward, with memory reserved for the
    optimizer's states.

    Twice if gradients accumulate: from the second micro-batch on the gradients are already
    allocated. Raises what a step would raise. Does nothing where the trainer generates its rows,
    because the longest one is not known yet.
    """
    columns = token_columns(trainer.train_dataset)
    if not columns:
        return
    rows = longest_rows(trainer.train_dataset, trainer.args.per_device_train_batch_size)
    batch = trainer._remove_unused_columns(
        trainer.train_dataset.select(rows), description="training"
    )
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    model = trainer.model_wrapped
    with _without_side_effects(trainer, model), _memory_for_states(trainer):
        for _ in range(min(2, trainer.args.gradient_accumulation_steps)):
            trainer.training_step(model, trainer.data_collator(list(batch)))
    longest = max(sum(len(row[name]) for name in columns) for row in batch)
    print(
        f"probe: {len(rows)} rows of up to {longest} tokens, the longest there are, went through",
        flush=True,
    )


def token_columns(dataset: Any) -> list[str]:
    """Return the columns with a row's tokens: one, or those of a prompt and its answers; none
    before tokenizing."""
    found = [name for name in dataset.column_names if name.endswith("ids")]
    return ["input_ids"] if "input_ids" in found else found


def longest_rows(dataset: Any, num_rows: int) -> list[int]:
    """Return the indices of the longest rows."""
    lengths = row_lengths(dataset)
    return sorted(range(len(lengths)), key=lambda index: lengths[index], reverse=True)[:num_rows]


def row_lengths(dataset: Any) -> list[int]:
    """Return the tokens of each row, prompt and answers together, without Python lists of all
    tokens."""
    import pyarrow.compute as pc

    columns = token_columns(dataset)
    lengths: list[int] = []
    for batch in dataset.with_format("arrow").iter(ROWS_AT_ONCE):
        per_column = [pc.list_value_length(batch[name]).to_pylist() for name in columns]
        lengths += [sum(row) for row in zip(*per_column, strict=True)]
    return lengths


def state_bytes(parameters: Iterable[nn.Parameter], optim: str) -> int:
    """Return the bytes of an optimizer's states for these parameters, on the device or paged."""
    known = BYTES_OF_STATES.get(optim.removeprefix("paged_"))
    total = 0.0
    for parameter in parameters:
        per_element = 2 * parameter.element_size() if known is None else known
        total += parameter.numel() * per_element
    return int(total)


@contextmanager
def _without_side_effects(trainer: Any, model: nn.Module) -> Iterator[None]:
    """Restore what TRL counts per step, random numbers and gradients after the block."""
    counters = {
        name: copy.deepcopy(getattr(trainer, name))  # the initial value may be the class's own
        for name in ("_metrics", "_stored_metrics", "_total_train_tokens")
        if hasattr(trainer, name)
    }
    try:
        with torch.random.fork_rng():
            yield
    finally:
        model.zero_grad(set_to_none=True)
        vars(trainer).update(counters)


@contextmanager
def _memory_for_states(trainer: Any) -> Iterator[None]:
    """Reserve the memory of the states that the first step will make, unless a checkpoint has
    restored them."""
    parameters = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    optim = OptimizerNames(trainer.args.optim).value
    has_states = getattr(trainer.optimizer, "state", None)
    reserved = None
    if not has_states and not optim.startswith("paged"):  # paged states need no device memory
        num_bytes = state_bytes(parameters, optim)
        reserved = torch.empty(num_bytes, dtype=torch.uint8, device=parameters[0].device)
    yield
    del reserved
