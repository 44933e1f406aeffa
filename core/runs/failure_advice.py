"""What to do about a run that failed, and whether one stands still. Proposes changes of the job; never makes them."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from core.advise import Change, suggest_fixes
from core.dataset import counted
from core.job import JobSpec, SpecError
from core.resolve import ResolvedJob, resolve
from core.runs import Run, deleted, fields_again

MOST_REMEDIES = 4
SPARE_SHARE = 0.15
"""How much less a job should be predicted to take once its prediction has proved to be too low."""
STEPS_OF_SILENCE, LEAST_SILENCE_SECONDS = 10, 60
"""A run stands still when it has been silent for so many of its steps, and for so long."""
SECONDS_OF_WORK = 600
"""What reading, loading, compiling or saving may take before somebody should look."""


@dataclass(frozen=True)
class Advice:
    """One thing to do about a failure. `fields_again(run) | change` is the job to try next."""

    title: str
    """A few words, for a button; with no change, what a person has to do."""
    change: Change
    """JobSpec field -> new value; empty where the job is not to blame."""
    why: str

    def to_json(self) -> dict[str, object]:
        """The same as plain values."""
        return {**vars(self), "change": dict(self.change)}


Cure = Callable[[Run], tuple[Advice, ...]]


def advice_for(run: Run) -> tuple[Advice, ...]:
    """What would help a failed run, the best first; none for any other run, or where nothing is known."""
    if run.state != "failed":
        return ()
    found = [remedy for cure in CURES.get(run.cause, ()) for remedy in cure(run)]
    return tuple(found[:MOST_REMEDIES])


def stall_warning(run: Run, now: float | None = None) -> str | None:
    """A sentence when nothing has happened for much longer than it should take; None while all is well."""
    if run.state != "running":
        return None
    status = run.status
    is_stepping = status.phase == "train" and run.step > 0
    pace = status.seconds_per_step or 0.0 if is_stepping else 0.0
    last_step_time = status.last_step_time if is_stepping else None
    last_sign = last_step_time or status.updated
    silence = (time.time() if now is None else now) - last_sign
    patience = max(LEAST_SILENCE_SECONDS, STEPS_OF_SILENCE * pace) if pace else SECONDS_OF_WORK
    if not last_sign or silence < patience:
        return None
    if not is_stepping:
        return f"Nothing new for {_duration(silence)}."
    return f"No step for {_duration(silence)}" + (
        f"; a step took {_duration(pace)}." if pace else "."
    )


def _advice(title: str, why: str) -> Cure:
    """Something that a person has to do; the job stays as it is."""
    return lambda run: (Advice(title, {}, why),)


def _set(title: str, why: str, applies: Callable[[JobSpec], bool], **change: object) -> Cure:
    """A change of fields, where it would be one."""
    return lambda run: (Advice(title, change, why),) if applies(run.job) else ()


def _take_less_memory(run: Run) -> tuple[Advice, ...]:
    """What brings the job well below what it was predicted to take, since that has proved to be too much.

    Nobody knows by how much: where it was thought to fit, the gentlest change comes first, not the surest.
    """
    resolved = _resolved(run)
    if resolved is None or resolved.model.shape is None:
        return ()
    capacity = run.status.device_capacity_bytes or resolved.gpu.capacity_bytes
    predicted = resolved.estimate()
    card = replace(
        resolved.gpu, capacity_bytes=min(capacity, int((1 - SPARE_SHARE) * predicted.total_bytes))
    )
    fixes = suggest_fixes(resolved.job, resolved.model.shape, card)
    if predicted.verdict == "fits":
        fixes = tuple(sorted(fixes, key=lambda fix: fix.harm))
    return tuple(Advice(fix.title, fix.change, fix.why) for fix in fixes)


def _take_less_memory_on_cpu(run: Run) -> tuple[Advice, ...]:
    """The same where the training itself happens in main memory."""
    resolved = _resolved(run)
    return _take_less_memory(run) if resolved and not any(resolved.gpu.compute_capability) else ()


def _learn_slower(run: Run) -> tuple[Advice, ...]:
    slower = float(f"{run.job.learning_rate / 5:.3g}")
    why = "Steps that are too large are the usual reason why a loss runs away."
    return (Advice(f"Learning rate {slower:g}", {"learning_rate": slower}, why),)


def _safer_numbers(run: Run) -> tuple[Advice, ...]:
    resolved = _resolved(run)
    if resolved is None or run.job.dtype != "float16":
        return ()
    dtype = "bfloat16" if resolved.gpu.supports_bf16 else "float32"
    return (
        Advice(
            f"Compute in {dtype}",
            {"dtype": dtype},
            "float16 overflows above 65,504; this does not.",
        ),
    )


def _empty_the_trash(run: Run) -> tuple[Advice, ...]:
    runs = deleted(run.home)
    return (
        (Advice("Empty the trash", {}, f"{counted(len(runs), 'deleted run')} in it."),)
        if runs
        else ()
    )


def _resolved(run: Run) -> ResolvedJob | None:
    """The run's job with what it names; None if that is not there any more, or cannot be estimated."""
    try:
        resolved = resolve(fields_again(run))
        resolved.estimate()
    except SpecError:
        return None
    return resolved


CURES: Mapping[str, tuple[Cure, ...]] = MappingProxyType(
    {
        "out_of_gpu_memory": (
            _take_less_memory,
            _set(
                "Halve the batch when memory runs out",
                "The run goes on with half the batch and twice the accumulation: the same optimizer steps.",
                lambda job: not job.halve_batch_on_oom,
                halve_batch_on_oom=True,
            ),
        ),
        "out_of_memory": (
            _set(
                "Keep activations on the GPU",
                "Offloaded activations lie in main memory.",
                lambda job: job.activation_offloading,
                activation_offloading=False,
            ),
            _set(
                "Optimizer that stays on the GPU",
                "A paged optimizer moves its states to main memory.",
                lambda job: job.optim.startswith("paged_"),
                optim="adamw_8bit",
            ),
            _take_less_memory_on_cpu,
            _advice(
                "Close other programs",
                "The whole machine was out of memory; the run can go on from where it was.",
            ),
        ),
        "diverged": (
            _learn_slower,
            _safer_numbers,
            _set(
                "Clip gradients at 1",
                "One bad batch then moves the weights no further than any other.",
                lambda job: not 0 < job.max_grad_norm <= 1,
                max_grad_norm=1.0,
            ),
            _set(
                "Longer warm-up",
                "The first steps, when the optimizer knows nothing yet, become smaller.",
                lambda job: job.warmup_ratio < 0.1 and job.lr_scheduler_type != "constant",
                warmup_ratio=0.1,
            ),
        ),
        "disk_full": (
            _empty_the_trash,
            _set(
                "Keep one checkpoint",
                "Of several, only the newest is needed to go on.",
                lambda job: job.save_total_limit > 1,
                save_total_limit=1,
            ),
            _advice(
                "Free some of the disk",
                "The last complete checkpoint is still there: the run can go on from it.",
            ),
        ),
        "import_error": (
            _set(
                "Plain layers",
                "Liger's fused layers need a package of their own.",
                lambda job: job.use_liger_kernel,
                use_liger_kernel=False,
            ),
            _advice(
                "Install what is missing",
                "`python app.py doctor` names it; the run can then be resumed.",
            ),
        ),
        "cannot_compile": (
            _set(
                "Without compiling",
                "Layers that are not compiled need no compiler; they are slower and keep more.",
                lambda job: job.torch_compile,
                torch_compile=False,
                activation_memory_budget=1.0,
            ),
            _advice(
                "Install what is missing",
                "`python app.py doctor` names it; the run can then be resumed.",
            ),
        ),
        "attention_unavailable": (
            _set(
                "SDPA attention",
                "PyTorch's own attention needs no further package.",
                lambda job: job.attn_implementation != "sdpa",
                attn_implementation="sdpa",
            ),
        ),
        "bad_target_modules": (
            _set(
                "Adapt all linear layers",
                "This works for every model, whatever its layers are called.",
                lambda job: job.target_modules != "all-linear",
                target_modules="all-linear",
            ),
        ),
        "gated_model": (
            _advice(
                "Accept the licence, then log in", "Its owner wants to know who uses the model."
            ),
        ),
        "model_not_found": (_advice("Choose another model", "Look at the name and the revision."),),
        "no_weights": (
            _advice("Choose another model", "Only weights in the safetensors format are loaded."),
        ),
        "offline": (
            _advice("Connect to the network", "Once the model is on this machine, none is needed."),
        ),
        "gpu_unusable": (
            _advice(
                "Install the PyTorch that fits the driver", "`python app.py doctor` says which."
            ),
        ),
        "checkpoint_mismatch": (
            _advice(
                "Start it anew",
                "A new run of the same job does not go on from this run's checkpoint.",
            ),
        ),
        "bad_row": (
            _advice("Check the data", "The Data panel lists every line that cannot be used."),
        ),
        "signal": (
            _advice(
                "Resume it",
                "Nothing in the job is known to be wrong; if it was the memory, see the log.",
            ),
        ),
    }
)
"""`cause` of a failed run -> what helps, the best first."""


def _duration(seconds: float) -> str:
    """12 s, 4 min, 2.5 h"""
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
