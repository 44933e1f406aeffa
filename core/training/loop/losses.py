"""Means of losses over counted tokens or rows, the same for every size of the batches.

A loss of TRL is the mean over one batch. The mean of such means depends on how the rows were
batched, so each is weighted here by what it is a mean of. Only adds up; never runs a model.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

IGNORED_LABEL = -100
"""Label of a token that does not count for the loss."""
Count = torch.Tensor | int


@dataclass(frozen=True)
class TokenTerm:
    """Part of a loss that is a mean over tokens, while the rest is a mean over rows."""

    mean: torch.Tensor
    """Mean over the counted tokens of one batch."""
    num_tokens: Count
    weight: float = 1.0
    """Factor with which it is part of the loss."""


@dataclass
class EvalMeans:
    """Losses of the batches of one evaluation, to be averaged over all tokens or rows."""

    averages_tokens: bool
    """True if the whole loss is a mean over counted tokens, False if over rows."""
    losses: list[torch.Tensor] = field(default_factory=list)
    counts: list[Count] = field(default_factory=list)
    """Tokens or rows that each loss is a mean of."""
    terms: list[TokenTerm] = field(default_factory=list)
    """Part of each loss that is a mean over tokens, if there is one."""

    def add(self, loss: torch.Tensor, inputs: Any, term: TokenTerm | None = None) -> None:
        """Add the loss of one batch. Leaves it on its device: nothing waits for it here."""
        loss = loss.detach().double()
        if term:
            self.terms.append(term)
            loss = loss - term.weight * term.mean.detach().double()
        self.losses.append(loss)
        is_counted_in_tokens = self.averages_tokens and "labels" in inputs
        self.counts.append(count_labels(inputs) if is_counted_in_tokens else count_rows(inputs))

    def mean(self) -> float:
        """Return the mean loss over all tokens or rows; NaN without any."""
        mean = _weighted_mean(self.losses, self.counts)
        if self.terms:
            tokens = [term.num_tokens for term in self.terms]
            means = [term.mean.detach() for term in self.terms]
            mean += self.terms[0].weight * _weighted_mean(means, tokens)
        return mean

    def average(self, metrics: Mapping[str, list[float]]) -> None:
        """Replace the values that TRL kept for each batch by their weighted mean."""
        for name, values in metrics.items():
            if len(values) != len(self.counts):
                continue  # not one for each batch
            counts = self.counts
            if name.endswith("nll_loss") and self.terms:
                counts = [term.num_tokens for term in self.terms]
            values[:] = [_weighted_mean(values, counts)]


@dataclass(frozen=True)
class StepCounts:
    """Rows and tokens of the micro-batches of one optimizer step."""

    num_batches: int
    num_rows: float
    """Of several ranks, the mean of their counts: gradients are averaged over them."""
    num_tokens: Count | float = 0
    """Tokens of the term that is a mean over tokens; 0 if the loss has none."""

    def row_share(self, inputs: Any) -> float:
        """Return the factor that makes the mean over a micro-batch count by its rows.

        1.0 if all micro-batches are equally large.
        """
        if not self.num_rows:
            return 1.0
        return count_rows(inputs) * self.num_batches / self.num_rows

    def token_share(self, num_tokens: Count) -> Count | float:
        """Return the same for the term that is a mean over tokens."""
        return num_tokens * self.num_batches / torch.as_tensor(self.num_tokens).clamp(min=1)


def count_rows(inputs: Any) -> int:
    """Return the number of rows of a batch; the two sides of a pair may both count."""
    if isinstance(inputs, Mapping):
        sizes = (len(each) for each in inputs.values() if isinstance(each, torch.Tensor))
        return next(sizes, 0)
    return len(inputs)


def count_labels(inputs: Mapping[str, torch.Tensor], name: str = "labels") -> torch.Tensor:
    """Return the number of tokens that a batch predicts: the first of a row has none before it."""
    return inputs[name][..., 1:].ne(IGNORED_LABEL).sum()


def perplexity(loss: float) -> float:
    """Return e to the power of a mean loss per token; infinite where that is too large a number."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def _weighted_mean(values: Sequence[torch.Tensor | float], counts: Sequence[Count]) -> float:
    total, weights = 0.0, 0
    for value, count in zip(values, counts, strict=True):
        weight = int(count)
        weights += weight
        if weight:  # a batch of which no token counts says nothing
            total += weight * float(value)
    return total / weights if weights else math.nan
