"""Facts of the data that a forecast needs, and the batches and steps that they make."""

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, log

from core.job import JobSpec
from core.speed.passes import trained_sequences
from core.training.contract.stages import STAGES

LENGTH_DEVIATION = 0.5
"""Standard deviation of row lengths over their mean: pads a batch of 8 to 1.86 times its tokens, as
Unsloth measured on chats (#3672: 96 s padded, 52 s without padding)."""
EULER = 0.5772156649


@dataclass(frozen=True)
class RowStatistics:
    """Facts of the data that a forecast needs."""

    num_rows: int
    """Rows of the training file, including those held out for evaluation."""
    mean_tokens: float | None = None
    """Mean tokens of a sequence: a row of sft, one side of a preference pair, a prompt of grpo.
    None if unknown: every row then counts as max_length tokens."""
    p95_tokens: int | None = None
    """95 % of the rows have at most this many tokens; None if unknown."""
    max_tokens: int | None = None
    """Longest sequence, evaluation data included; None if unknown: max_length is assumed."""


@dataclass(frozen=True)
class MicroBatch:
    """Tokens of one forward pass."""

    num_tokens: float
    """Includes padding."""
    num_data_tokens: float
    """Excludes padding."""
    attended_tokens: float
    """Length of the row that a token attends to, as the attention kernel sees it."""


def micro_batch(job: JobSpec, rows: RowStatistics | None, sees_documents: bool) -> MicroBatch:
    """Return the tokens of an average micro-batch.

    Packing joins all its rows to one; only a kernel that `sees_documents` separates them again.
    Without packing, every row is padded to the longest of its forward pass.
    """
    num_sequences = job.per_device_train_batch_size * trained_sequences(job)
    max_length = float(job.max_length)
    mean = mean_tokens(job, rows)
    if job.packing:
        num_tokens = num_sequences * max_length
        attended = mean if sees_documents else num_tokens
        return MicroBatch(num_tokens, num_tokens, attended)
    num_sorted = job.gradient_accumulation_steps if groups_by_length(job) else 1
    padded = _padded_tokens(mean, max_length, num_sequences, num_sorted)
    return MicroBatch(num_sequences * padded, num_sequences * mean, padded)


def groups_by_length(job: JobSpec) -> bool:
    """Return True if rows of similar length share the micro-batches of a step.

    The training program decides the same way: core/training/trainers/length_groups.py.
    """
    stage = STAGES[job.stage]
    may_reorder = job.shuffle and not stage.generates and not stage.compares_neighbours
    has_choice = job.per_device_train_batch_size > 1 and job.gradient_accumulation_steps > 1
    return may_reorder and has_choice


@lru_cache(maxsize=1024)
def _padded_tokens(mean: float, max_length: float, batch_size: int, num_batches: int) -> float:
    """Return the mean padded length of a row if the rows of `num_batches` are sorted before the
    split.

    Each batch is as long as its longest row. The k-th longest of n rows has about mean x (1 +
    deviation x (1/k + ... + 1/n - 1)) tokens, which is exact for lengths that are exponentially
    distributed above a minimum. Never less than the mean, because rows that are mostly cut at
    `max_length` are equally long.
    """
    num_rows = batch_size * num_batches
    tokens = 0.0
    for number in range(num_batches):
        longest_rank = _harmonic(num_rows) - _harmonic(number * batch_size)
        tokens += min(max_length, mean * (1 + LENGTH_DEVIATION * (longest_rank - 1)))
    return max(mean, tokens / num_batches)


def _harmonic(count: int) -> float:
    """Return 1 + 1/2 + ... + 1/count, by Euler's expansion where the sum is long."""
    if count < 32:
        return sum(1 / number for number in range(1, count + 1))
    return log(count) + EULER + 1 / (2 * count)


def mean_tokens(job: JobSpec, rows: RowStatistics | None) -> float:
    """Return the mean tokens of a trained sequence: cut at max_length, drawn answer included."""
    return prompt_tokens(job, rows) + _completion_tokens(job)


def prompt_tokens(job: JobSpec, rows: RowStatistics | None) -> float:
    """Return the mean tokens of a data row, cut so that a drawn answer still fits in max_length."""
    longest = float(max(1, job.max_length - _completion_tokens(job)))
    if rows is None or not rows.mean_tokens:
        return longest
    return min(rows.mean_tokens, longest)


def _completion_tokens(job: JobSpec) -> int:
    if STAGES[job.stage].generates:
        return job.max_completion_length
    return 0


def count_steps(job: JobSpec, rows: RowStatistics | None) -> int | None:
    """Return the optimizer steps of the whole job; None without `max_steps` and without `rows`."""
    if job.max_steps > 0:
        return job.max_steps
    if rows is None:
        return None
    num_rows = float(num_training_rows(job, rows))
    if job.packing and rows.mean_tokens:
        num_rows *= min(1.0, rows.mean_tokens / job.max_length)
    if STAGES[job.stage].generates:
        num_rows *= job.num_generations
    num_batches = ceil(num_rows / job.per_device_train_batch_size)
    batches_per_step = job.gradient_accumulation_steps * max(1, job.num_devices)
    return ceil(job.num_train_epochs * ceil(num_batches / batches_per_step))


def times_read(job: JobSpec, rows: RowStatistics | None) -> float | None:
    """Return how often training reads each row on average; None if that depends on unknown rows."""
    if job.max_steps <= 0:
        return job.num_train_epochs
    if rows is None:
        return None
    rows_per_step = job.effective_batch_size * max(1, job.num_devices)
    return job.max_steps * rows_per_step / max(1, num_training_rows(job, rows))


def num_training_rows(job: JobSpec, rows: RowStatistics) -> int:
    """Return the rows of an epoch, without those held out for evaluation."""
    num_rows = min(rows.num_rows, job.max_rows or rows.num_rows)
    if job.eval_dataset:
        return num_rows
    return num_rows - round(job.eval_fraction * num_rows)
