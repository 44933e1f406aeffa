"""Resolve a job on this machine: find its model, GPU and files, and let its profile choose.

Reads the disk and, for a model that is only on the Hub, the network; writes nothing.
"""

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from core.advise import (
    PLANNED_FIELDS,
    USUAL_GPUS,
    Case,
    Cell,
    Choice,
    Fix,
    Plan,
    plan,
    suggest_fixes,
    together,
    what_fits,
)
from core.device import local_gpu
from core.job import JobSpec, ModelNotFound, Problem, SpecError
from core.job.places import in_time, is_there, require_allowed, unanswered
from core.job.rules import refusals_to_train
from core.memory import MemoryEstimate
from core.models import (
    DEMO_DIR,
    HUB_ID,
    PRESETS_DIR,
    Gpu,
    ModelSource,
    demo_fields,
    find_model,
    gpus,
    settings_of_adapter,
    settings_of_base,
)
from core.speed import RowStatistics, Speed, mean_tokens, mfu, predict_speed
from core.training.contract.methods import METHODS
from core.training.contract.stages import STAGES, defaults_of

if TYPE_CHECKING:
    from core.dataset.token_lengths import Lengths

SECONDS_TO_READ_ADAPTER = 20.0
DEMO_DATASETS: Mapping[str, str] = {
    "language modeling": "data.jsonl",
    "preference": "preference.jsonl",
    "unpaired preference": "preference.jsonl",
    "prompt-only": "prompts.jsonl",
}
"""First dataset type that a stage accepts -> file of presets/demo that `demo` stands for."""


@dataclass(frozen=True)
class ResolvedJob:
    """Job together with what it names."""

    job: JobSpec
    """Includes the choices of its profile."""
    model: ModelSource
    gpu: Gpu
    datasets: Mapping[str, Path]
    """Field (`dataset`, `eval_dataset`) -> file; an empty field is missing."""
    mix: tuple[tuple[Path, float], ...] = ()
    """Further training files and their weights; `dataset` itself has weight 1."""
    plan: Plan = field(default_factory=Plan)
    """Choices of its profile with their reasons; empty for "custom" and unknown architectures."""
    rows: RowStatistics | None = None
    """Lengths of its rows, as far as they are known."""

    @property
    def files(self) -> tuple[tuple[str, Path], ...]:
        """(field, file) of all its data."""
        return (*self.datasets.items(), *(("mix", path) for path, _weight in self.mix))

    def require_trainable(self) -> None:
        """Raise SpecError if the job can be estimated, but not trained on this machine."""
        missing = self.model.missing_weights()
        problems = [*refusals_to_train(self.job), *([missing] if missing else ())]
        if problems:
            raise SpecError(*problems)

    def estimate(self) -> MemoryEstimate:
        """Estimate the memory of this job.

        Raises SpecError for an impossible job and for an unknown architecture.
        """
        if self.model.shape is None:
            problem = (
                f"{self.job.model} has an unknown architecture: its memory cannot be estimated"
            )
            fix = "use Check exactly, or choose a Llama, Mistral, Qwen, Gemma, Phi or similar model"
            raise SpecError(Problem("model", problem, fix))
        return Case(self.job, self.model.shape, self.gpu, self.rows).memory

    def row_statistics(self, lengths: "Lengths") -> RowStatistics:
        """Return what a forecast needs of the lengths of the rows that this job trains on."""
        job = self.job
        # a mix or a limit of rows is composed first, and the evaluation rows are held out of it
        is_composed = bool(self.mix or job.max_rows)
        num_rows = lengths.rows
        if is_composed and not job.eval_dataset:
            num_rows = round(num_rows / (1 - job.eval_fraction))
        max_tokens = None
        covers_all_rows = lengths.is_complete and not lengths.generates
        if covers_all_rows and not is_composed and not job.eval_dataset:
            max_tokens = lengths.max
        return RowStatistics(num_rows, max(1.0, lengths.mean_tokens), lengths.p95, max_tokens)

    def speed(self) -> Speed | None:
        """Forecast the speed of this job; None on a CPU and for an unknown architecture."""
        if self.model.shape is None:
            return None
        return predict_speed(self.job, self.model.shape, self.gpu, self.rows)

    def fixes(self) -> tuple[Fix, ...]:
        """Suggest changes that make it fit or, if it fits, faster. Raises SpecError."""
        shape = self.model.shape
        if shape is None or self.estimate().capacity_bytes == 0:
            return ()
        return suggest_fixes(self.job, shape, self.gpu, self.rows)

    def largest_batches(self) -> tuple[Cell, ...]:
        """Return the largest batch that fits by method and usual GPU, with checkpointing.

        Rows have this job's length. () for an unknown architecture. Raises SpecError if the model
        has fewer positions.
        """
        if self.model.shape is None:
            return ()
        models = [(self.job.model, self.model.shape)]
        cards = [gpus()[gpu] for gpu in USUAL_GPUS]
        return what_fits(models, METHODS, cards, self.job.max_length)

    def forecast(self) -> dict[str, object]:
        """Return memory, speed and fixes as `estimate --json` prints them.

        {} for an unknown architecture; no speed on a CPU. Raises SpecError.
        """
        if self.model.shape is None:
            return {}
        speed = self.speed()
        return self.estimate().to_json() | {
            "fixes": [fix.to_json() for fix in self.fixes()],
            "speed": speed.to_json() if speed else {},
            "peak_tokens_per_second": self._peak_tokens_per_second(),
        }

    def _peak_tokens_per_second(self) -> float | None:
        """Return the rate at which the GPU would compute only the model's own arithmetic.

        Measured rate / this rate is the model FLOPs utilization (MFU).
        """
        assert self.model.shape
        tokens = mean_tokens(self.job, self.rows)
        utilization = mfu(1.0, self.job, self.model.shape, self.gpu, tokens)
        if not utilization:
            return None
        return 1 / utilization


RowsOf = Callable[[ResolvedJob], RowStatistics | None]
"""Returns what is known of a job's rows, once its files and its model are found."""


def resolve(
    fields: Mapping[str, object],
    set_by_user: Collection[str] | None = None,
    rows: RowStatistics | RowsOf | None = None,
) -> ResolvedJob:
    """Return the job that these field values ask for, with everything that it names.

    A profile other than "custom" chooses what it may but the `set_by_user` fields, by default all
    that are given; it also depends on the lengths of the rows, if known. Values of the fields that
    it chooses are ignored.

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
    return resolve_job(job, kept, rows)


def resolve_job(
    job: JobSpec, set_by_user: frozenset[str], rows: RowStatistics | RowsOf | None = None
) -> ResolvedJob:
    """Find what a sound job names and let its profile choose.

    Raises SpecError with everything that is not there, or for a job that cannot run on its model.
    """
    found = _find_all(job, set_by_user)
    if callable(rows):
        rows = rows(found)
    shape = found.model.shape
    found = replace(found, job=together(found.job, shape, found.gpu, rows))
    if shape is None:
        return replace(found, rows=rows)
    chosen = plan(found.job, shape, found.gpu, rows, set_by_user & PLANNED_FIELDS)
    planned = JobSpec.parse({**found.job.model_dump(), **chosen.change})
    chosen = Plan((*found.plan.choices, *chosen.choices))
    return replace(found, job=planned, plan=chosen, rows=rows)


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
    gpu = _find_gpu(job, problems)
    datasets = _find_datasets(job, problems)
    mix = _find_mix(job, problems)
    job = _with_absolute_adapter(job, problems)
    settings = dict(settings_of_base(model.published)) if model else {}
    if job.adapter and model is not None and not problems:
        settings |= _find_adapter(Path(job.adapter), model, problems)
    if problems or model is None or gpu is None:
        raise SpecError(*problems)
    job = job.model_copy(update={**settings, "model": model.reference})
    return ResolvedJob(job, model, gpu, datasets, mix, chosen)


def _with_method_of_base(job: JobSpec, model: ModelSource) -> tuple[JobSpec, Plan]:
    """Return the job with the one method that can train a quantized base, and that choice.

    Defaults follow the method. Raises SpecError if the job refuses the method.
    """
    method = model.only_method
    if method is None or method == job.method:
        return job, Plan()
    fields, before = job.model_dump(), default_fields(job.model, job.method, job.stage)
    after = default_fields(job.model, method, job.stage)
    moved = {name: after[name] for name in after if fields[name] == before[name]}
    choice = Choice("method", method, "The base is quantized, and no other method trains over it.")
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
    return "demo" if location == str(DEMO_DIR) else location


def dataset_path(reference: str, stage: str = "sft") -> Path:
    """Return the file of a dataset: of `demo` the rows for this stage, otherwise the path given.

    Raises SpecError if it may not be read here; see core/job/places.py.
    """
    if reference != "demo":
        path = _absolute(reference)
        require_allowed(path, "dataset")
        return path
    dataset_type = STAGES[stage].dataset_types[0] if stage in STAGES else "language modeling"
    return PRESETS_DIR / "demo" / DEMO_DATASETS[dataset_type]


def _absolute(reference: str) -> Path:
    # Path.expanduser would raise for an unknown user
    return Path(os.path.expanduser(reference)).absolute()  # noqa: PTH111


def _without_planned(
    fields: Mapping[str, object], set_by_user: frozenset[str]
) -> Mapping[str, object]:
    """Return the fields with defaults for those that a profile will choose."""
    planned = (PLANNED_FIELDS & fields.keys()) - set_by_user
    if not planned or fields.get("profile", "custom") == "custom":
        return fields
    method, stage = fields.get("method", "lora"), fields.get("stage", "sft")
    defaults = default_fields(fields.get("model"), method, stage)
    return {**fields, **{name: defaults[name] for name in planned}}


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


def _find_datasets(job: JobSpec, problems: list[Problem]) -> dict[str, Path]:
    found = {}
    for name, reference in (("dataset", job.dataset), ("eval_dataset", job.eval_dataset)):
        if not reference:
            continue
        try:
            found[name] = dataset_path(reference, job.stage)
        except SpecError as error:
            problems += [replace(each, field=name) for each in error.problems]
            continue
        if not is_there(found[name]):
            problems.append(_no_file(name, reference))
    return found


def _find_mix(job: JobSpec, problems: list[Problem]) -> tuple[tuple[Path, float], ...]:
    if not job.mix.strip():
        return ()
    from core.dataset.rewrite import parse_mix  # imports numpy, which nothing else here needs

    try:
        mix = tuple((path.absolute(), weight) for path, weight in parse_mix(job.mix))
    except ValueError as error:
        problem, _, fix = str(error).partition("; ")
        fix = fix or "write one line for each file: path = weight"
        problems.append(Problem("mix", problem, fix))
        return ()
    for path, _weight in mix:
        try:
            require_allowed(path, "mix")
        except SpecError as error:
            problems += error.problems
            continue
        if not is_there(path):
            problems.append(_no_file("mix", str(path)))
    return mix


def _find_adapter(
    folder: Path, model: ModelSource, problems: list[Problem]
) -> Mapping[str, object]:
    """Return the settings of an adapter that can continue over a model."""
    try:
        misfit = in_time(lambda: model.adapter_problem(folder), folder, SECONDS_TO_READ_ADAPTER)
    except OSError as error:
        misfit = unanswered("adapter", folder, error)
    problems += [misfit] if misfit else []
    return {} if misfit else settings_of_adapter(folder)


def _no_file(field: str, reference: str) -> Problem:
    fix = "give the path of a JSONL file, or demo"
    if HUB_ID.fullmatch(reference) and not Path(reference).suffix:
        fix = "import the dataset from the Hub first, then give the imported file"
    return Problem(field, f"there is no file {reference}", fix)


def _with_absolute_adapter(job: JobSpec, problems: list[Problem]) -> JobSpec:
    """Return the job with the absolute path of its adapter: training runs in another folder."""
    if not job.adapter:
        return job
    folder = _absolute(job.adapter)
    try:
        require_allowed(folder, "adapter")
    except SpecError as error:
        problems += error.problems
        return job
    if not is_there(folder, Path.is_dir):
        problem = f"there is no folder {job.adapter}"
        problems.append(Problem("adapter", problem, "give the output folder of a run"))
    return job.model_copy(update={"adapter": str(folder)})
