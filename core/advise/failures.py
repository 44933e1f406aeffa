"""FAILURES: what helps after a failure, as changes of the job or things that a person has to do.

Looks at the job alone; core/runs/failure_advice.py adds what needs the run.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from core.advise.case import FieldValues
from core.job import JobSpec


@dataclass(frozen=True)
class Advice:
    """One thing to do about a failed run."""

    title: str
    """Few words, for a button; without a change, what a person has to do."""
    why: str
    change: FieldValues = field(default_factory=dict)
    """JobSpec field -> value of the job to try next; empty where the job is not to blame."""

    def to_json(self) -> dict[str, object]:
        """Return the advice as plain values."""
        return {"title": self.title, "change": dict(self.change), "why": self.why}


Advise = Callable[[JobSpec, bool], Advice | None]
"""(job, whether its card computes in bfloat16) -> advice; None where it does not apply."""


def _tell(title: str, why: str) -> Advise:
    """Return advice for a person; the job stays as it is."""
    return lambda job, supports_bf16: Advice(title, why)


def _set(title: str, why: str, **change: object) -> Advise:
    """Return advice to set fields, for jobs where that changes something."""

    def advise(job: JobSpec, supports_bf16: bool) -> Advice | None:
        is_new = any(getattr(job, name) != value for name, value in change.items())
        return Advice(title, why, change) if is_new else None

    return advise


def _learn_slower(job: JobSpec, supports_bf16: bool) -> Advice:
    slower = float(f"{job.learning_rate / 5:.3g}")
    why = "Steps that are too large are the usual reason why a loss diverges."
    return Advice(f"Learning rate {slower:g}", why, {"learning_rate": slower})


def _avoid_float16(job: JobSpec, supports_bf16: bool) -> Advice | None:
    if job.dtype != "float16":
        return None
    dtype = "bfloat16" if supports_bf16 else "float32"
    why = "float16 overflows above 65,504; this does not."
    return Advice(f"Compute in {dtype}", why, {"dtype": dtype})


def _clip_gradients(job: JobSpec, supports_bf16: bool) -> Advice | None:
    if 0 < job.max_grad_norm <= 1:
        return None
    why = "One bad batch then moves the weights no further than any other."
    return Advice("Clip gradients at 1", why, {"max_grad_norm": 1.0})


def _warm_up_longer(job: JobSpec, supports_bf16: bool) -> Advice | None:
    if job.warmup_ratio >= 0.1 or job.lr_scheduler_type == "constant":
        return None
    why = "The first steps, before the optimizer knows the gradients, become smaller."
    return Advice("Longer warm-up", why, {"warmup_ratio": 0.1})


def _unpage_optimizer(job: JobSpec, supports_bf16: bool) -> Advice | None:
    if not job.optim.startswith("paged_"):
        return None
    why = "A paged optimizer moves its states to main memory."
    return Advice("Optimizer that stays on the GPU", why, {"optim": "adamw_8bit"})


HALVE_BATCH = _set(
    "Halve the batch when memory runs out",
    "The run continues with half the batch and twice the accumulation.",
    halve_batch_on_oom=True,
)
KEEP_ON_GPU = _set(
    "Keep activations on the GPU",
    "Offloaded activations take main memory.",
    activation_offloading=False,
)
KEEP_ONE_CHECKPOINT = _set(
    "Keep one checkpoint", "Only the newest is needed to resume.", save_total_limit=1
)
PLAIN_LAYERS = _set(
    "Plain layers",
    "Liger's fused layers need a package that is not installed.",
    use_liger_kernel=False,
)
DO_NOT_COMPILE = _set(
    "Without compiling",
    "Layers that are not compiled need no compiler; they are slower and keep more.",
    torch_compile=False,
    activation_memory_budget=1.0,
)
SDPA = _set(
    "SDPA attention",
    "PyTorch's own attention needs no further package.",
    attn_implementation="sdpa",
)
ALL_LINEAR = _set(
    "Adapt all linear layers",
    "This works for every model and its names of layers.",
    target_modules="all-linear",
)
CLOSE_PROGRAMS = _tell("Close other programs", "The whole machine was out of memory; then resume.")
FREE_DISK = _tell("Free some of the disk", "The last complete checkpoint is still there.")
INSTALL = _tell("Install what is missing", "`python app.py doctor` names it; then resume the run.")

FAILURES: Mapping[str, tuple[Advise, ...]] = MappingProxyType(
    {
        "out_of_gpu_memory": (HALVE_BATCH,),
        "out_of_memory": (KEEP_ON_GPU, _unpage_optimizer, CLOSE_PROGRAMS),
        "diverged": (_learn_slower, _avoid_float16, _clip_gradients, _warm_up_longer),
        "disk_full": (KEEP_ONE_CHECKPOINT, FREE_DISK),
        "import_error": (PLAIN_LAYERS, INSTALL),
        "cannot_compile": (DO_NOT_COMPILE, INSTALL),
        "attention_unavailable": (SDPA,),
        "bad_target_modules": (ALL_LINEAR,),
        "gated_model": (
            _tell("Accept the licence, then log in", "The model's owner asks for it."),
        ),
        "model_not_found": (_tell("Choose another model", "Check the name and the revision."),),
        "no_weights": (_tell("Choose another model", "Only safetensors weights are loaded."),),
        "offline": (_tell("Connect to the network", "The model is not on this machine yet."),),
        "gpu_unusable": (_tell("Install a fitting PyTorch", "`python app.py doctor` says which."),),
        "checkpoint_mismatch": (_tell("Start a new run", "It does not use this checkpoint."),),
        "bad_row": (_tell("Check the data", "The Data panel lists every unusable line."),),
        "signal": (_tell("Resume it", "No fault is known; if it was the memory, see the log."),),
    }
)
"""`cause` of a failed run -> what helps, best first."""


def advice_after(cause: str, job: JobSpec, supports_bf16: bool) -> tuple[Advice, ...]:
    """Return what helps a job that failed for this cause, best first."""
    advice = (advise(job, supports_bf16) for advise in FAILURES.get(cause, ()))
    return tuple(each for each in advice if each)
