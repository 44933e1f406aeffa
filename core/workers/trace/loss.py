"""Loss of each stage as its trainer in TRL computes it, on a batch without data. Never names a
stage."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F
from trl.trainer import utils as trl_utils

from core.training.contract.job import Job
from core.training.contract.stages import STAGES, Loss, Stage


@dataclass(frozen=True)
class Batch:
    """Longest batch that the job can meet."""

    rows: int
    tokens: int
    """Tokens of each row, padding included."""
    is_packed: bool
    answer_tokens: int = 0
    """Generated tokens of each row: only they count, and rows are padded on the left. 0: none."""

    @property
    def has_mask(self) -> bool:
        """True if rows differ in length, or several share one."""
        return self.is_packed or self.rows > 1 or self.answer_tokens > 0

    @property
    def share_in_loss(self) -> Fraction:
        """Share of the tokens that count, without the first of each row, which nothing predicts."""
        return Fraction(self.answer_tokens or self.tokens - 1, self.tokens - 1)

    def inputs(self, has_labels: bool = True) -> dict[str, Tensor]:
        """Return what TRL's collator makes: padded rows have a mask, packed ones positions."""
        shape = self.rows, self.tokens
        inputs = {"input_ids": torch.zeros(shape, dtype=torch.long)}
        if has_labels:
            inputs["labels"] = torch.zeros(shape, dtype=torch.long)
        name = "position_ids" if self.is_packed else "attention_mask"
        inputs[name] = torch.ones(shape, dtype=torch.long)
        return inputs


@dataclass(frozen=True)
class Models:
    """Model that trains, and its reference model."""

    trained: Any
    reference: Any
    """Copy; None if the adapter is switched off instead, or there is no reference model."""
    dtype: torch.dtype | None
    """Precision of the autocast that accelerate puts around a forward pass."""

    def log_probs(self, batch: Batch) -> Tensor:
        """Return the log-probability of every token by the model that trains."""
        return self._log_probs_of(self.trained, batch)

    @torch.no_grad()
    def log_probs_without_graph(self, batch: Batch) -> Tensor:
        """Return the same without a graph."""
        return self._log_probs_of(self.trained, batch)

    @torch.no_grad()
    def reference_log_probs(self, batch: Batch) -> Tensor:
        """Return the log-probability of every token by the reference model."""
        if self.reference is not None:
            return self._log_probs_of(self.reference, batch)
        with self.trained.disable_adapter():
            return self._log_probs_of(self.trained, batch)

    def logits(self, batch: Batch) -> Tensor:
        """Return the output of the model's own head: one score per row, or all logits."""
        with self.autocast():
            inputs = batch.inputs(has_labels=False)
            logits: Tensor = self.trained(**inputs, use_cache=False).logits
        return logits.float()  # accelerate's convert_outputs_to_fp32

    def _log_probs_of(self, model: Any, batch: Batch) -> Tensor:
        with self.autocast():
            output = model(**batch.inputs(), use_cache=False, fused_lm_head=True)
        assert isinstance(output.log_probs, Tensor)
        return output.log_probs

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Run a block under the autocast of a training's forward pass."""
        is_enabled = self.dtype is not None
        with torch.autocast("cpu", dtype=self.dtype or torch.bfloat16, enabled=is_enabled):
            yield


def likelihood(models: Models, job: Job, batch: Batch) -> Tensor:
    """SFTTrainer.compute_loss."""
    return (-models.log_probs(batch)).sum() / torch.ones(())


def direct_preference(models: Models, job: Job, batch: Batch) -> Tensor:
    """DPOTrainer._compute_loss: chosen and rejected rows in one batch, against the reference."""
    chosen, rejected = models.log_probs(batch).sum(1).chunk(2)
    if job.precompute_ref_log_probs:
        return -F.logsigmoid(chosen - rejected).mean()
    reference_chosen, reference_rejected = models.reference_log_probs(batch).sum(1).chunk(2)
    margin = (chosen - reference_chosen) - (rejected - reference_rejected)
    return -F.logsigmoid(margin).mean()


def desirability(models: Models, job: Job, batch: Batch) -> Tensor:
    """KTOTrainer._compute_loss: mismatched rows without a graph, the rows, then both by the
    reference."""
    divergence = models.log_probs_without_graph(batch).sum(1).mean()
    log_ratio = models.log_probs(batch).sum(1)
    if not job.precompute_ref_log_probs:
        divergence = divergence - models.reference_log_probs(batch).sum(1).mean()
        log_ratio = log_ratio - models.reference_log_probs(batch).sum(1)
    return (1 - torch.sigmoid(log_ratio - divergence)).mean()


def pairwise_score(models: Models, job: Job, batch: Batch) -> Tensor:
    """RewardTrainer.compute_loss."""
    chosen, rejected = models.logits(batch).squeeze(-1).chunk(2)
    return -F.logsigmoid(chosen - rejected).mean()


def odds_ratio(models: Models, job: Job, batch: Batch) -> Tensor:
    """ORPOTrainer.concatenated_forward, odds_ratio_loss: all logits at once, chosen rows first."""
    logits = models.logits(batch)
    return _chosen_cross_entropy(logits) - F.logsigmoid(_margin(logits)).mean()


def contrast(models: Models, job: Job, batch: Batch) -> Tensor:
    """CPOTrainer.concatenated_forward and cpo_loss. SimPO has no likelihood term."""
    logits = models.logits(batch)
    cross_entropy = torch.zeros(())
    if job.loss_type != "simpo":
        cross_entropy = _chosen_cross_entropy(logits)
    return cross_entropy - F.logsigmoid(_margin(logits)).mean()


def advantage(models: Models, job: Job, batch: Batch) -> Tensor:
    """GRPOTrainer._compute_loss and RLOOTrainer._compute_loss: tokens of the answers, against their
    log-probabilities when they were generated."""
    log_probs = models.log_probs(batch)[:, -batch.answer_tokens :]
    ratio = torch.exp(log_probs - log_probs.detach())
    return -torch.min(ratio, ratio.clamp(0.8, 1.2)).mean()


LOSSES: Mapping[Loss, Callable[[Models, Job, Batch], Tensor]] = MappingProxyType(
    {
        "likelihood": likelihood,
        "pairwise score": pairwise_score,
        "preference": direct_preference,
        "desirability": desirability,
        "odds ratio": odds_ratio,
        "contrast": contrast,
        "advantage": advantage,
    }
)


def longest_batch(job: Job, num_rows: int) -> Batch:
    """Return so many rows of max_length tokens; packed, they share one row."""
    stage = STAGES[job.stage]
    sequences = stage.sequences_per_row - stage.forward_only_sequences
    rows = num_rows * sequences
    if stage.generates:
        answer_tokens = min(job.max_completion_length, job.max_length - 1)
        return Batch(rows, job.max_length, is_packed=False, answer_tokens=answer_tokens)
    if job.packing:
        return Batch(1, rows * job.max_length, is_packed=True)
    return Batch(rows, job.max_length, is_packed=False)


def add_loss_head(model: Any, stage: Stage) -> None:
    """Add TRL's fused head if the stage's trainer does; others use the model's own head."""
    if stage.head != "fused":
        return
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    outputs = ["log_probs", "entropy"]
    if not stage.generates:
        outputs.append("is_top1")
        if stage.reference != "none":
            outputs.append("mean_logits")
    trl_utils.add_fused_lm_head(base, outputs=tuple(outputs))


@contextmanager
def tiles_as_mapped(num_words: int, on_cpu: bool) -> Iterator[None]:
    """Count of a tile of the fused head what a processor maps: a small vocabulary fills a part.

    A GPU takes the whole tile.
    """
    name = "_CHUNKED_LOGPROB_CHUNK_SIZE"
    size = getattr(trl_utils, name)
    if on_cpu:
        size = min(size, num_words)
    with patch.object(trl_utils, name, size):
        yield


def _chosen_cross_entropy(logits: Tensor) -> Tensor:
    """Return the cross-entropy of the tokens of chosen rows."""
    chosen = logits[: len(logits) // 2, :-1].contiguous().flatten(0, 1)
    return F.cross_entropy(chosen, torch.zeros(len(chosen), dtype=torch.long))


def _margin(logits: Tensor) -> Tensor:
    """Return how much likelier chosen rows are than rejected ones, for logits [B, T, V]."""
    labels = torch.zeros(logits.shape[:2], dtype=torch.long)[:, 1:].clone()
    log_probs = trl_utils.selective_log_softmax(logits[:, :-1], labels)
    chosen, rejected = log_probs.sum(1).chunk(2)
    return chosen - rejected
