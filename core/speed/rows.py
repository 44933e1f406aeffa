"""What a forecast knows of the data: rows, their lengths, and the batches and steps that they come to."""

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, log

from core.job import JobSpec
from core.speed.passes import trained_sequences
from core.training.contract.stages import STAGES

LENGTH_SPREAD = 0.5
"""Standard deviation of row lengths over their mean: pads a batch of 8 to 1.86 times its tokens, as much as Unsloth
measured on chats (#3672: 96 s padded, 52 s without padding)."""
EULER = 0.5772156649


@dataclass(frozen=True)
class RowStatistics:
    """What a forecast needs to know of the data."""

    num_rows: int
    """Of the training file, with those that are held out for evaluation."""
    mean_tokens: float | None = None
    """Of a sequence: a row of sft, one side of a preference pair, a prompt of grpo. None: unknown, and every row counts
    as max_length tokens."""
    p95_tokens: int | None = None
    """95 % of the rows are at most as long; None: unknown."""
    max_tokens: int | None = None
    """No sequence is longer, in the training or in the evaluation; None: unknown, and max_length has to be assumed."""


@dataclass(frozen=True)
class MicroBatch:
    """The tokens of one forward pass."""

    num_tokens: float
    """With padding."""
    num_data_tokens: float
    """Without."""
    attended_tokens: float
    """Tokens of the row that a token stands in, as the attention kernel sees it."""


def micro_batch(job: JobSpec, rows: RowStatistics | None, sees_documents: bool) -> MicroBatch:
    """The tokens of a usual micro-batch. Packed, one row holds them all, and its documents are told apart only by a
    kernel that `sees_documents`.

    Not packed, rows are padded to the longest that goes through the model with them.
    """
    sequences, longest = (
        job.per_device_train_batch_size * trained_sequences(job),
        float(job.max_length),
    )
    mean = mean_tokens(job, rows)
    if job.packing:
        tokens = sequences * longest
        return MicroBatch(tokens, tokens, mean if sees_documents else tokens)
    padded = _padded_tokens(
        mean, longest, sequences, job.gradient_accumulation_steps if sorts_rows(job) else 1
    )
    return MicroBatch(sequences * padded, sequences * mean, padded)


def sorts_rows(job: JobSpec) -> bool:
    """True if rows of like length share the forward passes of a step: see core/training/trainers/length_groups.py."""
    stage = STAGES[job.stage]
    has_free_order = job.shuffle and not stage.generates and not stage.compares_neighbours
    return (
        has_free_order
        and job.per_device_train_batch_size > 1
        and job.gradient_accumulation_steps > 1
    )


@lru_cache(maxsize=1024)
def _padded_tokens(mean: float, longest: float, at_once: int, passes: int) -> float:
    """Tokens of a padded row on average, where the rows of `passes` forward passes are sorted before they are split.

    Each pass is as long as its longest row. The k-th longest of n rows has about mean x (1 + spread x (1/k + ... + 1/n
    - 1)) tokens, which is exact for lengths that are exponentially distributed above a least one. Where most rows are
    cut at the `longest`, they are alike: never less than the mean.
    """
    num_rows = at_once * passes
    tokens = 0.0
    for number in range(passes):
        beyond = _harmonic(num_rows) - _harmonic(number * at_once)
        tokens += min(longest, mean * (1 + LENGTH_SPREAD * (beyond - 1)))
    return max(mean, tokens / passes)


def _harmonic(count: int) -> float:
    """1 + 1/2 + ... + 1/count; by Euler's expansion where that is a long sum."""
    if count < 32:
        return sum(1 / number for number in range(1, count + 1))
    return log(count) + EULER + 1 / (2 * count)


def mean_tokens(job: JobSpec, rows: RowStatistics | None) -> float:
    """Tokens of a sequence as it is trained on, on average: cut at max_length, with its answer if one is drawn."""
    return prompt_tokens(job, rows) + _completion_tokens(job)


def prompt_tokens(job: JobSpec, rows: RowStatistics | None) -> float:
    """Tokens of a row of the data, on average: cut where its answer, if one is drawn, would go beyond max_length."""
    most = float(max(1, job.max_length - _completion_tokens(job)))
    return min(rows.mean_tokens, most) if rows and rows.mean_tokens else most


def count_steps(job: JobSpec, rows: RowStatistics | None) -> int | None:
    """Optimizer steps of the whole job; None if neither `max_steps` nor `rows` tells."""
    if job.max_steps > 0:
        return job.max_steps
    if rows is None:
        return None
    num_rows = float(num_training_rows(job, rows))
    if job.packing and rows.mean_tokens:
        num_rows *= min(1.0, rows.mean_tokens / job.max_length)
    if STAGES[job.stage].generates:
        num_rows *= job.num_generations
    steps_per_epoch = ceil(
        ceil(num_rows / job.per_device_train_batch_size) / job.gradient_accumulation_steps
    )
    return ceil(job.num_train_epochs * steps_per_epoch)


def times_read(job: JobSpec, rows: RowStatistics | None) -> float | None:
    """How often the training reads each row, on average; None if it takes so many steps through an unknown number."""
    if job.max_steps <= 0:
        return job.num_train_epochs
    return (
        job.max_steps * job.effective_batch_size / max(1, num_training_rows(job, rows))
        if rows
        else None
    )


def num_training_rows(job: JobSpec, rows: RowStatistics) -> int:
    """Rows of an epoch: those taken, less those held out."""
    taken = min(rows.num_rows, job.max_rows or rows.num_rows)
    return taken - (0 if job.eval_dataset else round(job.eval_fraction * taken))


def _completion_tokens(job: JobSpec) -> int:
    return job.max_completion_length if STAGES[job.stage].generates else 0
