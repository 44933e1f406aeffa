"""Order of the rows in each epoch, which a run that is resumed must find again."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl.trainer.utils import RepeatSampler


class RowOrder(TrainerCallback):
    """Callback that tells the sampler which epoch begins.

    On several ranks, in an epoch that is resumed in its middle, nobody else does: transformers and
    accelerate look for the sampler two samplers deep, and there it is wrapped in three, by
    skip_first_batches, BatchSamplerShard and BatchSampler. That of the online stages cannot be told
    at all. Both would draw the rows of epoch 0 again.
    """

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: Any = None,
        **_: Any,
    ) -> None:
        batches = train_dataloader
        while hasattr(batches, "batch_sampler"):
            batches = batches.batch_sampler
        sampler: Any = getattr(batches, "sampler", None)
        epoch = int(state.epoch or 0)
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
        elif isinstance(sampler, RepeatSampler) and sampler.shuffle and sampler.seed is not None:
            sampler.generator.manual_seed(sampler.seed + epoch)
