"""Passes of a token through the model: forward, recomputed, backward. Knows no card."""

from dataclasses import dataclass
from itertools import pairwise
from math import ceil

from core.job import JobSpec
from core.models import ModelShape
from core.training.contract.methods import METHODS
from core.training.contract.stages import STAGES


@dataclass(frozen=True)
class Passes:
    """Passes through the layers for each trained token. A fraction: only some layers take part."""

    forward: float
    """Includes passes without gradients: the reference model, KTO's mismatched answers."""
    recompute: float
    """Matrix products of the forward pass that the backward pass computes again."""
    recompute_elementwise: float
    """Everything else that the backward pass computes again; it only moves memory."""
    input_gradient: float
    weight_gradient: float


FORWARD_ONLY = Passes(
    forward=1, recompute=0, recompute_elementwise=0, input_gradient=0, weight_gradient=0
)
RECOMPUTED_MATMULS = (
    (0.0, 0.73),
    (0.1, 0.62),
    (0.2, 0.54),
    (0.3, 0.39),
    (0.4, 0.27),
    (0.5, 0.16),
    (0.7, 0.0),
    (1.0, 0.0),
)
"""Activation memory budget -> share of a layer's forward FLOPs that its backward pass repeats: the
most by torch 2.13 in a Llama layer with any method (`python benchmarks/compiled_layers.py`)."""
RECOMPUTED_ELEMENTWISE = 0.35
"""Share of the element-wise writes that is repeated where no matrix product is: the inputs of
attention and MLP and the gated product, 4h + 2f of some 8h + 2q + 2k + 6f bytes per token."""


def passes_of(job: JobSpec, shape: ModelShape) -> Passes:
    """Return the passes of each micro-batch, without those that happen once before training."""
    method = METHODS[job.method]
    trained_share = 1.0
    if method.trains_last_layers:
        trained_share = min(1.0, job.num_trainable_layers / shape.num_hidden_layers)
    recompute, recompute_elementwise = _recomputed_shares(job, shape)
    forward_only = STAGES[job.stage].forward_only_sequences + STAGES[job.stage].trains_value_model
    if not job.precompute_ref_log_probs:
        forward_only += reference_sequences(job)
    weight_gradient = trained_share
    if method.trains_adapter:
        weight_gradient = 0
    return Passes(
        forward=1 + forward_only / trained_sequences(job),
        recompute=trained_share * recompute,
        recompute_elementwise=trained_share * recompute_elementwise,
        input_gradient=trained_share,
        weight_gradient=weight_gradient,
    )


def _recomputed_shares(job: JobSpec, shape: ModelShape) -> tuple[float, float]:
    """Return the shares of matrix products and of everything else that the backward pass repeats.

    A compiled layer within a budget repeats element-wise work first, because that costs no FLOPs.
    """
    num_layers = shape.num_hidden_layers
    if job.gradient_checkpointing:
        share = ceil(num_layers / job.checkpoint_every_n_layers) / num_layers
        return share, share
    budget = job.activation_memory_budget
    if not job.torch_compile or budget == 1:
        return 0, 0
    matmuls = 0.0
    for (low, at_low), (high, at_high) in pairwise(RECOMPUTED_MATMULS):
        if low <= budget <= high:
            matmuls = at_low + (at_high - at_low) * (budget - low) / (high - low)
    return matmuls, 1 if matmuls else RECOMPUTED_ELEMENTWISE


def trained_sequences(job: JobSpec) -> int:
    """Return the sequences of a row that go forward and backward, in every model that trains."""
    stage = STAGES[job.stage]
    return stage.sequences_per_row - stage.forward_only_sequences + stage.trains_value_model


def reference_sequences(job: JobSpec) -> int:
    """Return the sequences of a row that the reference model reads."""
    stage = STAGES[job.stage]
    is_used = stage.reference != "none" and (job.beta > 0 or not stage.generates)
    return stage.sequences_per_row * is_used
