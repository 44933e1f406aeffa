"""The order of the rows: those of a step are drawn at random, and lie with those of like length in its forward passes.

What a step learns from stays what it was. Owns nothing of which rows are drawn.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import RandomSampler, Sampler

from ..loop.probe import columns_of_tokens, lengths_of


class LikeLengths(Sampler[int]):
    """The random order of accelerate, with the rows of every optimizer step sorted, the longest first.

    A row is padded to the longest of its forward pass, so that less is padded the more alike these are.
    """

    def __init__(self, drawn: SeedableRandomSampler, lengths: Sequence[int], rows_per_step: int):
        self.drawn, self.lengths, self.rows_per_step = drawn, lengths, rows_per_step

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        order = list(self.drawn)
        for begin in range(0, len(order), self.rows_per_step):
            yield from sorted(
                order[begin : begin + self.rows_per_step], key=lambda row: -self.lengths[row]
            )

    def set_epoch(self, epoch: int) -> None:
        """Accelerate asks for the order of an epoch, also when it goes on in the midst of one."""
        self.drawn.set_epoch(epoch)


def with_like_lengths(sampler: Any, trainer: Any) -> Any:
    """What a trainer would draw its rows with, sorted within each step; as it was where the order is no free choice
    (of the file, of KTO's neighbours, of drawn answers) or a step is a single forward pass."""
    args, dataset = trainer.args, trainer.train_dataset
    is_split = args.gradient_accumulation_steps > 1 and args.per_device_train_batch_size > 1
    if type(sampler) is not RandomSampler or not is_split or not columns_of_tokens(dataset):
        return sampler
    drawn = SeedableRandomSampler(dataset, data_seed=args.data_seed)
    rows_per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps
    return LikeLengths(drawn, lengths_of(dataset), rows_per_step)
