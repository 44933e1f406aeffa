"""REFUSALS_OF_SEVERAL_DEVICES: what cannot train on several devices, or not divided among them.

Each was tried with torch 2.13, accelerate 1.15 and bitsandbytes 0.50: it fails, or silently does
something else.
"""

from core.job.fields import JobFields
from core.job.refusal import Refusal
from core.training.contract.job import EXTRA_OPTIMIZERS
from core.training.contract.methods import Method
from core.training.contract.stages import Stage

BITSANDBYTES_OPTIMIZERS = ("adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "lion_8bit")
UNSHARDED_OPTIMIZERS = (*BITSANDBYTES_OPTIMIZERS, "adafactor", *EXTRA_OPTIMIZERS)
"""Optimizers that cannot update a tensor of which they hold a part."""
SHARDED_OPTIMIZER = "adamw_torch_fused"
"""Default of a divided job where that of its method is one of those."""


def _is_divided(job: JobFields) -> bool:
    return job.num_devices != 1 and job.parallelism == "fsdp"


def _is_8bit(job: JobFields, stage: Stage, method: Method) -> bool:
    return _is_divided(job) and method.base_bits == 8


def _mixes_widths(job: JobFields, stage: Stage, method: Method) -> bool:
    """Return True if an adapter has float32 and 16-bit tensors, which FSDP2 does not join."""
    return _is_divided(job) and job.use_dora and method.base_bits == 4


REFUSALS_OF_SEVERAL_DEVICES = (
    Refusal(
        "parallelism",
        _is_8bit,
        "bitsandbytes cannot divide 8-bit weights among devices",
        "choose ddp, or the method qlora",
    ),
    Refusal(
        "optim",
        lambda job, stage, method: _is_divided(job) and job.optim in UNSHARDED_OPTIMIZERS,
        "{job.optim} cannot update weights that are divided among devices",
        "choose adamw_torch_fused, or parallelism ddp",
    ),
    Refusal(
        "use_dora",
        _mixes_widths,
        "DoRA's magnitudes are wider than the rest of an adapter over a quantized base, and such "
        "tensors cannot be divided together",
        "switch it off, choose the method lora, or parallelism ddp",
    ),
    Refusal(
        "torch_compile",
        lambda job, stage, method: _is_divided(job) and job.torch_compile,
        "compiled layers were not tried with weights that are divided among devices",
        "switch it off, or choose parallelism ddp",
    ),
    Refusal(
        "init_lora_weights",
        lambda job, stage, method: (
            _is_divided(job) and job.init_lora_weights not in ("default", "gaussian")
        ),
        "{job.init_lora_weights} changes base weights, which are divided among the devices",
        "choose default, or parallelism ddp",
    ),
)
