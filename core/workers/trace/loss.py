"""The loss of each stage as its trainer in TRL takes it, on a batch without data. Never names a stage."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from trl.trainer import utils as trl_utils

from core.training.contract.job import Job
from core.training.contract.stages import STAGES, Loss, Stage

FUSED = ("log_probs", "entropy", "is_top1")
PREFERENCE = (*FUSED, "mean_logits")
DRAWN = ("log_probs", "entropy")


@dataclass(frozen=True)
class Batch:
    """The longest batch that the job can meet."""

    rows: int
    tokens: int
    """Of each row, padding included."""
    is_packed: bool
    answer_tokens: int = 0
    """Of each row, drawn by the model: only they count, and rows are padded on the left. 0: nothing is drawn."""

    @property
    def has_mask(self) -> bool:
        """True if rows differ in length, or several share one."""
        return self.is_packed or self.rows > 1 or self.answer_tokens > 0

    @property
    def share_scored(self) -> Fraction:
        """Of the tokens, but for the first of each row, which nothing foretells."""
        return Fraction(self.answer_tokens or self.tokens - 1, self.tokens - 1)

    def inputs(self, has_labels: bool = True) -> dict[str, Tensor]:
        """What TRL's collator makes, on the device: padded rows have a mask, packed ones positions."""
        shape = self.rows, self.tokens
        names = ("input_ids", "labels") if has_labels else ("input_ids",)
        ids = {name: torch.zeros(shape, dtype=torch.long) for name in names}
        extra = "position_ids" if self.is_packed else "attention_mask"
        return ids | {extra: torch.ones(shape, dtype=torch.long)}


@dataclass(frozen=True)
class Models:
    """The model that trains, and the one that it is held against."""

    trained: Any
    reference: Any
    """A copy; None if the adapter is switched off in its place, or nothing is asked."""
    dtype: torch.dtype | None
    """Of the autocast that accelerate puts around a model's forward pass."""

    def log_probs(self, batch: Batch) -> Tensor:
        """Of every token, by the model that trains."""
        return self._ask(self.trained, batch)

    @torch.no_grad()
    def log_probs_without_graph(self, batch: Batch) -> Tensor:
        """The same, for comparison only."""
        return self._ask(self.trained, batch)

    @torch.no_grad()
    def reference_log_probs(self, batch: Batch) -> Tensor:
        """Of every token, by the model as it was."""
        if self.reference is not None:
            return self._ask(self.reference, batch)
        with self.trained.disable_adapter():
            return self._ask(self.trained, batch)

    def scores(self, batch: Batch) -> Tensor:
        """One number for each sequence, or for each word after each token."""
        with self.autocast():
            found: Tensor = self.trained(**batch.inputs(has_labels=False), use_cache=False).logits
        return found.float()  # accelerate's convert_outputs_to_fp32

    def _ask(self, model: Any, batch: Batch) -> Tensor:
        with self.autocast():
            found = model(**batch.inputs(), use_cache=False, fused_lm_head=True).log_probs
        assert isinstance(found, Tensor)
        return found

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """As it is around every forward pass of a training."""
        with torch.autocast(
            "cpu", dtype=self.dtype or torch.bfloat16, enabled=self.dtype is not None
        ):
            yield


def likelihood(models: Models, job: Job, batch: Batch) -> Tensor:
    """SFTTrainer.compute_loss."""
    return (-models.log_probs(batch)).sum() / torch.ones(())


def direct_preference(models: Models, job: Job, batch: Batch) -> Tensor:
    """DPOTrainer._compute_loss: chosen and rejected rows in one batch, against the reference."""
    chosen, rejected = models.log_probs(batch).sum(1).chunk(2)
    if job.precompute_ref_log_probs:
        return -F.logsigmoid(chosen - rejected).mean()
    as_chosen, as_rejected = models.reference_log_probs(batch).sum(1).chunk(2)
    return -F.logsigmoid((chosen - as_chosen) - (rejected - as_rejected)).mean()


def wanted_or_not(models: Models, job: Job, batch: Batch) -> Tensor:
    """KTOTrainer._compute_loss: mismatched rows first, without a graph, then the rows, then both by the reference."""
    divergence = models.log_probs_without_graph(batch).sum(1).mean()
    logits = models.log_probs(batch).sum(1)
    if not job.precompute_ref_log_probs:
        divergence = divergence - models.reference_log_probs(batch).sum(1).mean()
        logits = logits - models.reference_log_probs(batch).sum(1)
    return (1 - torch.sigmoid(logits - divergence)).mean()


def pairwise(models: Models, job: Job, batch: Batch) -> Tensor:
    """RewardTrainer.compute_loss."""
    chosen, rejected = models.scores(batch).squeeze(-1).chunk(2)
    return -F.logsigmoid(chosen - rejected).mean()


def odds_ratio(models: Models, job: Job, batch: Batch) -> Tensor:
    """ORPOTrainer.concatenated_forward and odds_ratio_loss: all logits at once, chosen rows first."""
    return (
        _likelihood_of_chosen(logits := models.scores(batch)) - F.logsigmoid(_margin(logits)).mean()
    )


def contrast(models: Models, job: Job, batch: Batch) -> Tensor:
    """CPOTrainer.concatenated_forward and cpo_loss; SimPO imitates nothing."""
    logits = models.scores(batch)
    imitates = job.loss_type != "simpo"
    likelihood_of_chosen = _likelihood_of_chosen(logits) if imitates else torch.zeros(())
    return likelihood_of_chosen - F.logsigmoid(_margin(logits)).mean()


def _likelihood_of_chosen(logits: Tensor) -> Tensor:
    """Of the tokens of chosen rows."""
    chosen = logits[: len(logits) // 2, :-1].contiguous().flatten(0, 1)
    return F.cross_entropy(chosen, torch.zeros(len(chosen), dtype=torch.long))


def _margin(logits: Tensor) -> Tensor:
    """By how much chosen rows are likelier, for logits [B, T, V]."""
    labels = torch.zeros(logits.shape[:2], dtype=torch.long)[:, 1:].clone()
    chosen, rejected = trl_utils.selective_log_softmax(logits[:, :-1], labels).sum(1).chunk(2)
    return chosen - rejected


def advantage(models: Models, job: Job, batch: Batch) -> Tensor:
    """GRPOTrainer._compute_loss and RLOOTrainer._compute_loss: the answers' tokens, held against what was known of
    them when they were drawn."""
    log_probs = models.log_probs(batch)[:, -batch.answer_tokens :]
    ratio = torch.exp(log_probs - log_probs.detach())
    return -torch.min(ratio, ratio.clamp(0.8, 1.2)).mean()


ComputeLoss = Callable[[Models, Job, Batch], Tensor]
LOSSES: Mapping[Loss, ComputeLoss] = MappingProxyType(
    {
        "likelihood": likelihood,
        "pairwise score": pairwise,
        "preference": direct_preference,
        "desirability": wanted_or_not,
        "odds ratio": odds_ratio,
        "contrast": contrast,
        "advantage": advantage,
    }
)


def batch_of(job: Job) -> Batch:
    """Rows of max_length tokens; packed, they share one row."""
    stage = STAGES[job.stage]
    sequences = stage.sequences_per_row - stage.forward_only_sequences
    rows = job.per_device_train_batch_size * sequences
    if stage.generates:
        return Batch(
            rows, job.max_length, False, min(job.max_completion_length, job.max_length - 1)
        )
    return (
        Batch(1, rows * job.max_length, True) if job.packing else Batch(rows, job.max_length, False)
    )


def with_head(model: Any, stage: Stage) -> Any:
    """The model with TRL's fused head, as the stage's trainer puts it on; one that scores has its own."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if stage.head == "fused":
        trl_utils.add_fused_lm_head(base, outputs=_head_outputs(stage))
    return model


def _head_outputs(stage: Stage) -> tuple[str, ...]:
    """Return what TRL's head computes for each token."""
    if stage.generates:
        return DRAWN
    return FUSED if stage.reference == "none" else PREFERENCE
