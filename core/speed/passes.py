"""How often a job sends a token through the model: what its stage, its method and its checkpointing ask for."""

from dataclasses import dataclass
from itertools import pairwise
from math import ceil

from core.job import JobSpec
from core.models import ModelShape
from core.training.contract.methods import METHODS
from core.training.contract.stages import STAGES


@dataclass(frozen=True)
class Passes:
    """Passes through the layers for each token that is trained on. A share means that not every layer takes part."""

    forward: float
    """With those that keep nothing for a backward pass: the reference model's, KTO's mismatched answers."""
    recompute: float
    """Matrix products of the forward pass once more in the backward pass."""
    rewrite: float
    """The same for all that is no product, and moves memory only."""
    input_gradient: float
    weight_gradient: float


PRODUCTS_AGAIN = (
    (0.0, 0.73),
    (0.1, 0.62),
    (0.2, 0.54),
    (0.3, 0.39),
    (0.4, 0.27),
    (0.5, 0.16),
    (0.7, 0.0),
    (1.0, 0.0),
)
"""Activation memory budget -> share of the operations of a layer's forward pass that its backward pass does once more:
the most that torch 2.13 does in a Llama layer with any method (`python benchmarks/compiled_layers.py`)."""
NORMS_AND_GATE_AGAIN = 0.35
"""Share of what a layer writes besides its products that is written once more where no product is done twice: what goes
into the attention and into the MLP, and the gated product, 4h + 2f of some 8h + 2q + 2k + 6f bytes per token."""
FORWARD_ONLY = Passes(forward=1, recompute=0, rewrite=0, input_gradient=0, weight_gradient=0)


def passes_of(job: JobSpec, shape: ModelShape) -> Passes:
    """The passes of a job in each micro-batch; what is asked once, before the training, is `reference_sequences`."""
    method = METHODS[job.method]
    share = (
        min(1.0, job.num_trainable_layers / shape.num_hidden_layers)
        if method.trains_last_layers
        else 1.0
    )
    again = ceil(shape.num_hidden_layers / job.checkpoint_every_n_layers) / shape.num_hidden_layers
    recompute, rewrite = (again, again) if job.gradient_checkpointing else _again_within_budget(job)
    beside = _sequences_beside(job) + (
        0 if job.precompute_ref_log_probs else reference_sequences(job)
    )
    return Passes(
        forward=1 + beside / trained_sequences(job),
        recompute=share * recompute,
        rewrite=share * rewrite,
        input_gradient=share,
        weight_gradient=0 if method.trains_adapter else share,
    )


def _again_within_budget(job: JobSpec) -> tuple[float, float]:
    """Shares of the products and of everything else that a compiled layer computes again. The cheapest comes first:
    what is no product is free of operations."""
    budget = job.activation_memory_budget
    if not job.torch_compile or budget == 1:
        return 0, 0
    (low, most), (high, least) = next(
        pair for pair in pairwise(PRODUCTS_AGAIN) if budget <= pair[1][0]
    )
    products = most + (least - most) * (budget - low) / (high - low)
    return products, 1 if products else NORMS_AND_GATE_AGAIN


def trained_sequences(job: JobSpec) -> int:
    """Return the sequences of a row that go forward and backward, through every model that trains."""
    stage = STAGES[job.stage]
    return stage.sequences_per_row - stage.forward_only_sequences + stage.trains_value_model


def reference_sequences(job: JobSpec) -> int:
    """Sequences of a row that the reference model reads."""
    stage = STAGES[job.stage]
    is_asked = stage.reference != "none" and (job.beta > 0 or not stage.generates)
    return stage.sequences_per_row if is_asked else 0


def _sequences_beside(job: JobSpec) -> int:
    """Return the sequences that only go forward: KTO's mismatched answer, PPO's answer in its reward model."""
    stage = STAGES[job.stage]
    return stage.forward_only_sequences + stage.trains_value_model
