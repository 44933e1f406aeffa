"""Rough memory of a configuration: weights, optimizer states, what layers keep. No simulation.

Orders the configurations of one job and tells the search where to look first; the exact estimate
takes a hundred times longer and decides what fits.
"""

from core.advise.case import Case
from core.advise.changes import keeps_reference
from core.speed.passes import passes_of, trained_sequences
from core.speed.work import KEPT_TENSORS, adapter_parameters, stored_bytes, trained_parameters
from core.training.contract.job import is_sharded
from core.training.contract.stages import STAGES

INPUT_SHARE = 0.04
"""Share of a layer's input, which checkpointing keeps: 8 of 185 to 238 kB per token in an 8B."""
LINEAR_INPUTS_SHARE = 0.26
"""Share of its linear layers' inputs, which 8-bit ones keep even if checkpointed: 53 of 206 kB."""
KEPT_COMPILED = 0.7
"""Share that a compiled layer keeps, by the estimate: 0.67 with full, 0.73 with LoRA in Llama."""
KEPT_WITHOUT_RECOMPUTED_MATMULS = 0.66
"""Of those, what remains if only element-wise results are recomputed: 43 of 66 kB per token in a
Llama layer (`python benchmarks/compiled_layers.py`)."""
ON_THE_WAY_SHARE = 0.3
"""Of offloaded activations, those still on the card on their way to main memory or back."""
LOGIT_BYTES = 12
"""Per logit of a head that keeps all of them: the logits and their gradient in float32, and as much
for the half of the rows whose answers are imitated."""


def rough_bytes(case: Case) -> float:
    """Return the approximate memory of a job; a packed row's mask is not counted."""
    job, shape = case.job, case.shape
    row_tokens = job.max_length
    if case.rows and case.rows.max_tokens and not job.packing:
        row_tokens = min(row_tokens, case.rows.max_tokens)
    num_tokens = job.per_device_train_batch_size * trained_sequences(job) * row_tokens
    layer_bytes = 2 * shape.hidden_size * KEPT_TENSORS
    logit_bytes = LOGIT_BYTES * shape.vocab_size if STAGES[job.stage].head == "logits" else 0
    # One more layer: the one at work.
    num_layers = 1 + shape.num_hidden_layers * _kept_share(case)
    return resident_bytes(case) + num_tokens * (layer_bytes * num_layers + logit_bytes)


def _kept_share(case: Case) -> float:
    """Return what the layers keep for the backward pass, relative to eager layers that keep all."""
    job, passes = case.job, passes_of(case.job, case.shape)
    trained = passes.input_gradient
    kept = trained
    if job.gradient_checkpointing:
        kept -= passes.recompute
    elif job.torch_compile and job.activation_memory_budget < 1:
        kept *= min(job.activation_memory_budget, KEPT_WITHOUT_RECOMPUTED_MATMULS)
    if job.torch_compile:
        kept *= KEPT_COMPILED
    input_share = INPUT_SHARE
    if job.activation_offloading:
        kept *= ON_THE_WAY_SHARE
        input_share = 0.0
    if job.base_bits == 8:
        input_share += LINEAR_INPUTS_SHARE
    return kept + input_share * (trained - kept)


def resident_bytes(case: Case) -> float:
    """Return the bytes of weights, gradients and optimizer states: never more than the estimate."""
    job, shape = case.job, case.shape
    width = stored_bytes(job, case.gpu)
    weights = width * shape.num_parameters
    if keeps_reference(case):
        weights *= 2
    num_trained = trained_parameters(job, shape)
    num_kept_per_number = 1.0  # the gradient
    if job.trains_adapter:
        num_trained, width = adapter_parameters(job, shape), 4
        num_kept_per_number = 2  # the weight, too
    state_bytes = 2 if "8bit" in job.optim else 2 * width
    whole = weights + num_trained * (num_kept_per_number * width + state_bytes)
    return whole / (job.num_devices if is_sharded(job.num_devices, job.parallelism) else 1)
