"""Resolve a job on this machine: find its model, GPU and files, and let its profile choose.

Reads the disk and, for a model that is only on the Hub, the network; writes nothing.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

from core.advise import PLANNED_FIELDS, Choice, Plan, plan, together
from core.device import local_gpu
from core.job import JobSpec, ModelNotFound, Problem, SpecError
from core.memory import PastRun
from core.models import (
    DEMO_DIR,
    Gpu,
    ModelSource,
    demo_fields,
    find_model,
    gpus,
    settings_of_base,
)
from core.resolve.files import find_adapter, find_datasets, find_mix, with_absolute_adapter
from core.resolve.resolved import ResolvedJob
from core.speed import RowStatistics
from core.training.contract.methods import METHODS
from core.training.contract.stages import STAGES, defaults_of

RowsOf = Callable[[ResolvedJob], RowStatistics | None]
"""Returns what is known of a job's rows, once its files and its model are found."""
PastRunsOf = Callable[[ResolvedJob], tuple[PastRun, ...]]
"""Returns the runs of this machine that correct the memory of a job, once its card is found."""


def no_past_runs(_found: ResolvedJob) -> tuple[PastRun, ...]:
    """Return no runs: memory is as simulated."""
    return ()


def resolve(
    fields: Mapping[str, object],
    set_by_user: Collection[str] | None = None,
    rows: RowStatistics | RowsOf | None = None,
    past: PastRunsOf = no_past_runs,
) -> ResolvedJob:
    """Return the job that these field values ask for, with everything that it names.

    A profile other than "custom" chooses what it may but the `set_by_user` fields, by default all
    that are given; under "custom" a division chooses the optimizer. The choice also depends on the
    lengths of the rows, if known, and on what past runs have shown of this machine. Values of the
    fields that are chosen are ignored.

    Raises SpecError with every problem at once: of the values, and of what the sound values name.
    """
    kept = frozenset(fields if set_by_user is None else set_by_user)
    asked = _without_planned(fields, kept)
    try:
        job = JobSpec.parse(asked)
    except SpecError as error:
        bad = {problem.field for problem in error.problems}
        sound = {name: value for name, value in asked.items() if name not in bad}
        raise SpecError(*error.problems, *_problems_of(sound, bad)) from None
    return _with_optimizer_of_division(resolve_job(job, kept, rows, past), kept)


def resolve_job(
    job: JobSpec,
    set_by_user: frozenset[str],
    rows: RowStatistics | RowsOf | None = None,
    past: PastRunsOf = no_past_runs,
) -> ResolvedJob:
    """Find what a sound job names and let its profile choose.

    Raises SpecError with everything that is not there, or for a job that cannot run on its model.
    """
    found = _find_all(job, set_by_user)
    if callable(rows):
        rows = rows(found)
    found = replace(found, rows=rows, past=past(found))
    shape = found.model.shape
    kept = set_by_user & PLANNED_FIELDS
    shared = together(found.job, shape, found.gpu, rows, past=found.past, set_by_user=kept)
    job = shared.job
    found = replace(found, job=job, division=shared.reason, most_devices=shared.most_devices)
    if shape is None:
        return found
    chosen = plan(job, shape, found.gpu, rows, kept, past=found.past)
    planned = JobSpec.parse({**job.model_dump(), **chosen.change})
    return replace(found, job=planned, plan=Plan((*found.plan.choices, *chosen.choices)))


def _find_all(job: JobSpec, set_by_user: frozenset[str]) -> ResolvedJob:
    """Return the job with what it names, before its profile chooses how it runs.

    Its plan holds the method, if the profile chose that. Raises SpecError.
    """
    problems: list[Problem] = []
    model = _find_model(job, problems)
    chosen = Plan()
    if model and job.profile != "custom" and "method" not in set_by_user:
        job, chosen = _with_method_of_base(job, model)
    problems += model.problems(job.stage, job.method) if model else ()
    misfit = model.target_problem(job.target_modules) if model and job.trains_adapter else None
    problems += [misfit] if misfit else []
    gpu = _find_gpu(job, problems)
    datasets = find_datasets(job, problems)
    mix = find_mix(job, problems)
    job = with_absolute_adapter(job, problems)
    settings = dict(settings_of_base(model.published)) if model else {}
    if job.adapter and model is not None and not problems:
        settings |= find_adapter(Path(job.adapter), model, problems)
    if problems or model is None or gpu is None:
        raise SpecError(*problems)
    job = job.model_copy(update={**settings, "model": model.reference})
    return ResolvedJob(job, model, gpu, datasets, mix, chosen)


def _with_method_of_base(job: JobSpec, model: ModelSource) -> tuple[JobSpec, Plan]:
    """Return the job with the one method that can train a quantized base, and that choice.

    Defaults follow the method. Raises SpecError if the job refuses the method.
    """
    method = model.only_method
    if method is None:
        return job, Plan()
    choice = Choice("method", method, "The base is quantized, and no other method trains over it.")
    if method == job.method:
        return job, Plan((choice,))
    fields, before = job.model_dump(), default_fields(job.model, job.method, job.stage)
    after = default_fields(job.model, method, job.stage)
    moved = {name: after[name] for name in after if fields[name] == before[name]}
    return JobSpec.parse({**fields, **moved, "method": method}), Plan((choice,))


def default_fields(model: object, method: object, stage: object = "sft") -> dict[str, object]:
    """Return the default of every field under a model, a method and a stage."""
    fields = {name: field.default for name, field in JobSpec.model_fields.items()}
    if str(stage) in STAGES and str(method) in METHODS:
        fields |= defaults_of(str(stage), str(method))
    if model == "demo":
        fields |= demo_fields(str(stage))
    return fields


def reference_of(location: str) -> str:
    """Return how users refer to the model at a location in a job file."""
    parts = DEMO_DIR.parts[-3:]  # of this Tailor, or of another copy of it
    return "demo" if Path(location).parts[-len(parts) :] == parts else location


def _without_planned(
    fields: Mapping[str, object], set_by_user: frozenset[str]
) -> Mapping[str, object]:
    """Return the fields with defaults for those that a profile, or a division, will choose."""
    planned = frozenset({"optim"})
    if fields.get("profile", "custom") != "custom":
        planned = PLANNED_FIELDS
    method, stage = fields.get("method", "lora"), fields.get("stage", "sft")
    defaults = default_fields(fields.get("model"), method, stage)
    del defaults["optim"]  # JobSpec knows that of a divided job, too
    kept = {name: value for name, value in fields.items() if name not in planned - set_by_user}
    return {**{name: defaults[name] for name in defaults.keys() & fields.keys()}, **kept}


def _with_optimizer_of_division(found: ResolvedJob, set_by_user: frozenset[str]) -> ResolvedJob:
    """Return a job with the choice of its optimizer, if its division and no profile has made it."""
    job = found.job
    usual = default_fields(job.model, job.method, job.stage)["optim"]
    if job.profile != "custom" or "optim" in set_by_user or job.optim == usual:
        return found
    why = f"{usual}, the usual one here, cannot update weights that are divided among devices."
    chosen = Choice("optim", job.optim, why)
    return replace(found, plan=Plan((*found.plan.choices, chosen)))


def _problems_of(sound: Mapping[str, object], bad: set[str]) -> tuple[Problem, ...]:
    """Return the problems of sound values, with defaults for the bad fields."""
    try:
        resolve_job(JobSpec.parse(sound), PLANNED_FIELDS)
    except SpecError as error:
        return tuple(problem for problem in error.problems if problem.field not in bad)
    return ()


def _find_model(job: JobSpec, problems: list[Problem]) -> ModelSource | None:
    try:
        return find_model(job.model, job.revision)
    except ModelNotFound as error:
        problems += (each.with_method_of_adapter(job.method) for each in error.problems)
        return None


def _find_gpu(job: JobSpec, problems: list[Problem]) -> Gpu | None:
    if job.gpu in gpus():
        return gpus()[job.gpu]
    if job.gpu != "local":
        fix = f"choose local, {', '.join(gpus())}"
        problems.append(Problem("gpu", f"{job.gpu!r} is not a preset", fix))
        return None
    try:
        return local_gpu(index=job.device)
    except SpecError as error:
        problems += error.problems
        return None
