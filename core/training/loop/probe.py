"""The probe: forward and backward on the longest batch before the first step, so that a lack of memory shows in the
first seconds or not at all. Leaves no trace in weights, gradients, random numbers or metrics.
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
"""Optimizer -> bytes of its states per number that trains; any other is an AdamW, which keeps two numbers as wide as
the parameter."""


def has_limited_memory() -> bool:
    """True on a GPU. A CPU swaps rather than fails, and the demo should start at once."""
    return torch.cuda.is_available()


def probe(trainer: Any) -> None:
    """Takes the longest batch of a trainer through forward and backward, with room kept for the optimizer's states.

    Twice if gradients accumulate: from the second batch on they are there beforehand. Raises what a step would raise.
    """
    if trainer.draws_answers or not columns_of_tokens(trainer.train_dataset):
        return  # what is longest is not known before it has been drawn
    rows = longest_rows(trainer.train_dataset, trainer.args.per_device_train_batch_size)
    kept = trainer._remove_unused_columns(
        trainer.train_dataset.select(rows), description="training"
    )
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    model = trainer.model_wrapped
    with _without_a_trace(trainer, model), _room_for_states(trainer):
        for _ in range(min(2, trainer.args.gradient_accumulation_steps)):
            trainer.training_step(model, trainer.data_collator(list(kept)))
    longest = max(
        sum(len(row[name]) for name in columns_of_tokens(trainer.train_dataset)) for row in kept
    )
    print(
        f"probe: {len(rows)} rows of up to {longest} tokens, the longest there are, went through",
        flush=True,
    )


def columns_of_tokens(dataset: Any) -> list[str]:
    """The columns that hold a row's tokens: one, or those of a prompt and of its answers."""
    named = [name for name in dataset.column_names if name.endswith("ids")]
    return ["input_ids"] if "input_ids" in named else named


def longest_rows(dataset: Any, num_rows: int) -> list[int]:
    """Indices of the longest rows."""
    lengths = lengths_of(dataset)
    return sorted(range(len(lengths)), key=lambda index: lengths[index], reverse=True)[:num_rows]


def lengths_of(dataset: Any) -> list[int]:
    """Tokens of each row, of a prompt and its answers together, without making Python lists of all tokens."""
    import pyarrow.compute as pc

    columns = columns_of_tokens(dataset)
    lengths: list[int] = []
    for batch in dataset.with_format("arrow").iter(ROWS_AT_ONCE):
        per_column = (pc.list_value_length(batch[name]).to_pylist() for name in columns)
        lengths += map(sum, zip(*per_column, strict=True))
    return lengths


def bytes_of_states(parameters: Iterable[nn.Parameter], optim: str) -> int:
    """What an optimizer will keep for these parameters, wherever it keeps it."""
    per_number = BYTES_OF_STATES.get(optim.removeprefix("paged_"))
    sizes = (
        parameter.numel() * (2 * parameter.element_size() if per_number is None else per_number)
        for parameter in parameters
    )
    return int(sum(sizes))


@contextmanager
def _without_a_trace(trainer: Any, model: nn.Module) -> Iterator[None]:
    """What TRL counts per step, random numbers and gradients are afterwards as they were."""
    counted = {
        name: copy.deepcopy(getattr(trainer, name))  # a count of none yet may be the class's own
        for name in ("_metrics", "_stored_metrics", "_total_train_tokens")
        if hasattr(trainer, name)
    }
    try:
        with torch.random.fork_rng():
            yield
    finally:
        model.zero_grad(set_to_none=True)
        vars(trainer).update(counted)


@contextmanager
def _room_for_states(trainer: Any) -> Iterator[None]:
    """Memory as large as the states that the first step will make, unless a checkpoint has brought them."""
    parameters = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    optim = OptimizerNames(trainer.args.optim).value
    room = None
    if not getattr(trainer.optimizer, "state", None) and not optim.startswith(
        "paged"
    ):  # which keeps them elsewhere
        num_bytes = bytes_of_states(parameters, optim)
        room = torch.empty(num_bytes, dtype=torch.uint8, device=parameters[0].device)
    yield
    del room
