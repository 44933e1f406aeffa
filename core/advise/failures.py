"""FAILURES: what helps after a failure, as changes of the job or things that a person has to do.

Looks at the job alone; core/runs/results/failure_advice.py adds what needs the run.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from core.advise.case import FieldValues
from core.job import JobSpec
from core.training.contract.failures import GPU_FAILED


@dataclass(frozen=True)
class Advice:
    """One thing to do about a failed run."""

    title: str
    """Few words, for a button; without a change, what a person has to do."""
    why: str
    change: FieldValues = field(default_factory=dict)
    """JobSpec field -> value of the job to try next; empty where the job is not to blame."""

    def applies(self, job: JobSpec) -> bool:
        """Return True if the change would change something, or there is none."""
        is_new = any(getattr(job, name) != value for name, value in self.change.items())
        return is_new or not self.change

    def to_json(self) -> dict[str, object]:
        """Return the advice as plain values."""
        return {"title": self.title, "change": dict(self.change), "why": self.why}


INSTALL = Advice("Install what is missing", "`python app.py doctor` names it; then resume the run.")

FAILURES: Mapping[str, tuple[Advice, ...]] = MappingProxyType(
    {
        "out_of_memory": (
            Advice(
                "Keep activations on the GPU",
                "Offloaded activations take main memory.",
                {"activation_offloading": False},
            ),
            Advice("Close other programs", "The whole machine was out of memory; then resume."),
        ),
        "disk_full": (
            Advice(
                "Keep one checkpoint",
                "Only the newest is needed to resume.",
                {"save_total_limit": 1},
            ),
            Advice("Free some of the disk", "The last complete checkpoint is still there."),
        ),
        "import_error": (
            Advice(
                "Plain layers",
                "Liger's fused layers need a package that is not installed.",
                {"use_liger_kernel": False},
            ),
            INSTALL,
        ),
        "cannot_compile": (
            Advice(
                "Without compiling",
                "Layers that are not compiled need no compiler; they are slower and keep more.",
                {"torch_compile": False, "activation_memory_budget": 1.0},
            ),
            INSTALL,
        ),
        "attention_unavailable": (
            Advice(
                "SDPA attention",
                "PyTorch's own attention needs no further package.",
                {"attn_implementation": "sdpa"},
            ),
        ),
        "bad_target_modules": (
            Advice(
                "Adapt all linear layers",
                "This works for every model and its names of layers.",
                {"target_modules": "all-linear"},
            ),
        ),
        "gated_model": (
            Advice("Accept the licence, then log in", "The model's owner asks for it."),
        ),
        "model_not_found": (Advice("Choose another model", "Check the name and the revision."),),
        "no_weights": (Advice("Choose another model", "Only safetensors weights are loaded."),),
        "offline": (Advice("Connect to the network", "The model is not on this machine yet."),),
        "gpu_unusable": (
            Advice("Install a fitting PyTorch", "`python app.py doctor` says which."),
        ),
        GPU_FAILED: (
            Advice(
                "Resume once the card answers",
                "Other runs wait until a new process has used it, which is tried each minute.",
            ),
            Advice(
                "If it stays silent, restart the machine",
                "`nvidia-smi` shows whether the driver has lost it or counts memory errors.",
            ),
        ),
        "checkpoint_mismatch": (Advice("Start a new run", "It does not use this checkpoint."),),
        "bad_row": (Advice("Check the data", "The Data panel lists every unusable line."),),
        "stuck": (Advice("Run it again", "The logs show where each process stood, line by line."),),
        "signal": (
            Advice("Run it again", "No fault is known; if it was the memory, see the log."),
        ),
    }
)
"""`cause` of a failed run -> what helps, best first; `_computed` adds what depends on the job."""


def advice_after(cause: str, job: JobSpec, supports_bf16: bool) -> tuple[Advice, ...]:
    """Return what helps a job that failed for this cause, best first."""
    advice = (*_computed(cause, job, supports_bf16), *FAILURES.get(cause, ()))
    return tuple(each for each in advice if each.applies(job))


def _computed(cause: str, job: JobSpec, supports_bf16: bool) -> Iterator[Advice]:
    """Yield the advice whose values or conditions depend on the job."""
    if cause == "out_of_gpu_memory" and job.num_devices == 1:
        # the ranks of several devices would wait in the middle of their step
        why = "The run continues with half the batch and twice the accumulation."
        title = "Halve the batch when memory runs out"
        yield Advice(title, why, {"halve_batch_on_oom": True})
    if cause == "out_of_memory" and job.optim.startswith("paged_"):
        why = "A paged optimizer moves its states to main memory."
        yield Advice("Optimizer that stays on the GPU", why, {"optim": "adamw_8bit"})
    if cause != "diverged":
        return
    slower = float(f"{job.learning_rate / 5:.3g}")
    why = "Steps that are too large are the usual reason why a loss diverges."
    yield Advice(f"Learning rate {slower:g}", why, {"learning_rate": slower})
    if job.dtype == "float16":
        dtype = "bfloat16" if supports_bf16 else "float32"
        why = "float16 overflows above 65,504; this does not."
        yield Advice(f"Compute in {dtype}", why, {"dtype": dtype})
    if not 0 < job.max_grad_norm <= 1:
        why = "One bad batch then moves the weights no further than any other."
        yield Advice("Clip gradients at 1", why, {"max_grad_norm": 1.0})
    if job.warmup_ratio < 0.1 and job.lr_scheduler_type != "constant":
        why = "The first steps, before the optimizer knows the gradients, become smaller."
        yield Advice("Longer warm-up", why, {"warmup_ratio": 0.1})
