"""Order of the training rows: rows of one optimizer step are sorted by length, to need less
padding.

Which rows make up a step stays as it was.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import RandomSampler, Sampler

from ..loop.probe import row_lengths, token_columns
from ..ranks import agreement


class LengthGroupedSampler(Sampler[int]):
    """Random order of accelerate, with the rows of every optimizer step sorted, the longest first.

    A row is padded to the longest of its micro-batch, so similar lengths need less padding.
    """

    def __init__(self, sampler: SeedableRandomSampler, lengths: Sequence[int], rows_per_step: int):
        self.sampler = sampler
        self.lengths = lengths
        self.rows_per_step = rows_per_step

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        order = list(self.sampler)
        for begin in range(0, len(order), self.rows_per_step):
            step = order[begin : begin + self.rows_per_step]
            yield from sorted(step, key=lambda row: -self.lengths[row])

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch whose order is wanted; accelerate calls it, also in the middle of one."""
        self.sampler.set_epoch(epoch)


def group_by_length(sampler: Any, trainer: Any) -> Any:
    """Return a sampler that sorts the rows of each step by length.

    Returns the given one where the order is fixed (of the file, of KTO's neighbours, of generated
    answers) or a step is a single micro-batch.
    """
    args, dataset = trainer.args, trainer.train_dataset
    num_micro_batches = args.gradient_accumulation_steps * agreement.count()
    has_micro_batches = num_micro_batches > 1 and args.per_device_train_batch_size > 1
    if type(sampler) is not RandomSampler or not has_micro_batches or not token_columns(dataset):
        return sampler
    random_order = SeedableRandomSampler(dataset, data_seed=args.data_seed)
    rows_per_step = args.per_device_train_batch_size * num_micro_batches
    return LengthGroupedSampler(random_order, row_lengths(dataset), rows_per_step)
