"""What a job stands for on this machine: its model found, its card, its files, and what its profile chose. Reads the
disk and, for a model that is only on the Hub, the network; changes nothing.
"""

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from core.advise import (
    PLANNED_FIELDS,
    Cell,
    Fix,
    Plan,
    estimate_on,
    largest_batch,
    plan,
    suggest_fixes,
    use_the_room,
)
from core.device import local_gpu, this_machine
from core.job import JobSpec, ModelNotFound, Problem, SpecError, refusals_to_train
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
)
from core.speed import RowStatistics, Speed, mean_tokens, mfu, predict_speed
from core.training.contract.methods import METHODS
from core.training.contract.stages import STAGES, defaults_of

if TYPE_CHECKING:
    from core.dataset import Lengths

DEMO_DATASETS: Mapping[str, str] = {
    "language modeling": "data.jsonl",
    "preference": "preference.jsonl",
    "unpaired preference": "preference.jsonl",
    "prompt-only": "prompts.jsonl",
}
"""Dataset type, the first that a stage accepts -> the file of presets/demo that `demo` stands for there."""


@dataclass(frozen=True)
class ResolvedJob:
    """A job together with the things that it names."""

    job: JobSpec
    """With what its profile chose."""
    model: ModelSource
    gpu: Gpu
    datasets: Mapping[str, Path]
    """Field (`dataset`, `eval_dataset`) -> file; a field that names nothing is absent."""
    mix: tuple[tuple[Path, float], ...] = ()
    """Further training files and their weights; `dataset` itself has weight 1."""
    plan: Plan = field(default_factory=Plan)
    """The choices of its profile, each with its reason; empty for "custom" and for an unknown architecture."""
    rows: RowStatistics | None = None
    """What is known of its data."""

    @property
    def files(self) -> tuple[tuple[str, Path], ...]:
        """(field, file) of all the data, the further training files included."""
        return (*self.datasets.items(), *(("mix", path) for path, _weight in self.mix))

    def require_trainable(self) -> None:
        """Raises SpecError for a job that can be estimated, but not trained on this machine."""
        if problems := tuple(refusals_to_train(self.job)):
            raise SpecError(*problems)

    def estimate(self) -> MemoryEstimate:
        """The memory this job takes. Raises SpecError if the job is impossible or the architecture is not known."""
        if self.model.shape is None:
            problem = f"the architecture of {self.job.model} has no estimate of its own"
            fix = "trace one step of it with Check exactly, or choose a Llama, Mistral, Qwen, Gemma, Phi or similar model"
            raise SpecError(Problem("model", problem, fix))
        return estimate_on(self.job, self.model.shape, self.gpu, self.rows)

    def row_statistics(self, found: "Lengths") -> RowStatistics:
        """What the lengths of the rows that it trains on tell a forecast."""
        job, is_composed = self.job, bool(self.mix or self.job.max_rows)
        held_out = job.eval_fraction if is_composed and not job.eval_dataset else 0.0
        is_all = found.is_complete and not (is_composed or job.eval_dataset or found.is_drawn)
        num_rows = round(found.rows / (1 - held_out))
        return RowStatistics(
            num_rows, max(1.0, found.mean_tokens), found.p95, found.max if is_all else None
        )

    def speed(self) -> Speed | None:
        """The forecast of its speed; None where there is none."""
        return (
            predict_speed(self.job, self.model.shape, self.gpu, self.rows)
            if self.model.shape
            else None
        )

    def fixes(self) -> tuple[Fix, ...]:
        """What would make it fit, or, if it fits with room to spare, faster. Raises SpecError as `estimate` does."""
        shape = self.model.shape
        if shape is None or self.estimate().capacity_bytes == 0:
            return ()
        return suggest_fixes(self.job, shape, self.gpu, self.rows) or use_the_room(
            self.job, shape, self.gpu, self.rows
        )

    def largest_batches(self, cards: Sequence[Gpu]) -> tuple[Cell, ...]:
        """The largest batch that fits, by method and card, at the job's length with checkpointing.

        Empty for an architecture that is not known. Raises SpecError if the model is shorter than that length.
        """
        shape = self.model.shape
        jobs = [
            JobSpec.parse({"method": method, "max_length": self.job.max_length})
            for method in METHODS
        ]
        return tuple(
            Cell(self.job.model, job.method, card.id, largest_batch(job, shape, card))
            for job, card in product(jobs, cards)
            if shape
        )

    def forecast(self) -> dict[str, object]:
        """Memory, speed and fixes as plain values: what `estimate --json` prints; empty for an unknown architecture.

        Raises SpecError.
        """
        if self.model.shape is None:
            return {}
        speed = self.speed()
        fixes = [fix.to_json() for fix in self.fixes()]
        told = {"fixes": fixes, "speed": speed.to_json() if speed else {}}
        return (
            self.estimate().to_json()
            | told
            | {"peak_tokens_per_second": self._peak_tokens_per_second()}
        )

    def _peak_tokens_per_second(self) -> float | None:
        """The rate at which the card would do nothing but the model's own arithmetic: measured / this is the MFU."""
        tokens = mean_tokens(self.job, self.rows)
        busy = mfu(1.0, self.job, self.model.shape, self.gpu, tokens) if self.model.shape else None
        return 1 / busy if busy else None


RowsOf = Callable[[ResolvedJob], RowStatistics | None]
"""Finds out what is known of a job's data, once its files and its model are found."""


def resolve(
    fields: Mapping[str, object],
    set_by_user: Collection[str] | None = None,
    rows: RowStatistics | RowsOf | None = None,
) -> ResolvedJob:
    """Return the job that these field values ask for, with everything that it names.

    A profile other than "custom" chooses what it may but the `set_by_user` fields, by default all
    that are given; the length of the rows, if known, has a say. Values of the fields that it
    chooses are ignored.

    Raises SpecError with every problem at once: of the values, and of what the sound values name.
    """
    kept = frozenset(fields if set_by_user is None else set_by_user)
    asked = _without_planned(fields, kept)
    try:
        job = JobSpec.parse(asked)
    except SpecError as error:
        bad = {problem.field for problem in error.problems}
        sound = {name: value for name, value in asked.items() if name not in bad}
        raise SpecError(*(error.problems + _more_problems(sound, bad))) from None
    return resolve_job(job, kept, rows)


def resolve_job(
    job: JobSpec, set_by_user: frozenset[str], rows: RowStatistics | RowsOf | None = None
) -> ResolvedJob:
    """Find what a sound job names and let its profile choose.

    Raises SpecError with everything that is not there, or for a job that cannot run on its model.
    """
    found = _find_all(job)
    if callable(rows):
        rows = rows(found)
    shape = found.model.shape
    if shape is None:
        return replace(found, rows=rows)
    chosen = plan(found.job, shape, found.gpu, rows, set_by_user & PLANNED_FIELDS)
    planned = found.job
    if chosen.choices:
        planned = JobSpec.parse({**planned.model_dump(), **chosen.change})
    return replace(found, job=planned, plan=chosen, rows=rows)


def _find_all(job: JobSpec) -> ResolvedJob:
    """Return the job with what it names, before its profile chooses. Raises SpecError."""
    problems: list[Problem] = []
    model = _find_model(job, problems)
    gpu = _find_gpu(job, problems)
    datasets = _find_datasets(job, problems)
    mix = _find_mix(job, problems)
    job = _with_adapter_found(job, problems)
    if problems or model is None or gpu is None:
        raise SpecError(*problems)
    job = job.model_copy(update={"model": model.reference})
    return ResolvedJob(job, model, gpu, datasets, mix)


def default_fields(model: object, method: object, stage: object = "sft") -> dict[str, object]:
    """The value of every field that nobody has set: JobSpec's, or the stage's and the method's, or for the demo model
    those of the demo."""
    fields = {name: field.default for name, field in JobSpec.model_fields.items()}
    is_known = str(stage) in STAGES and str(method) in METHODS
    if is_known:
        fields |= defaults_of(str(stage), str(method))
    if model == "demo":
        fields |= demo_fields(str(stage))
    return fields


def reference_of(location: str) -> str:
    """What a person calls the model at a location that the training program was given."""
    return "demo" if location == str(DEMO_DIR) else location


def dataset_path(reference: str, stage: str = "sft") -> Path:
    """The file that a dataset's name stands for: `demo`, whose rows are those for the stage, or a path."""
    if reference != "demo":
        return _absolute(reference)
    types = STAGES[stage].dataset_types if stage in STAGES else ("language modeling",)
    return PRESETS_DIR / "demo" / DEMO_DATASETS[types[0]]


def is_there(path: Path, is_kind: Callable[[Path], bool] = Path.is_file) -> bool:
    """True for a file that can be seen; not for a name that is too long to be one, nor behind a closed door."""
    try:
        return is_kind(path)
    except OSError:
        return False


def _absolute(reference: str) -> Path:
    """A path as a person writes it, whole; that of a user who is not here leads nowhere."""
    return Path(os.path.expanduser(reference)).absolute()  # noqa: PTH111 (the other one raises for such a user)


def _without_planned(
    fields: Mapping[str, object], set_by_user: frozenset[str]
) -> Mapping[str, object]:
    """The values given, with defaults in place of those that a profile will choose."""
    loose = PLANNED_FIELDS & fields.keys() - set_by_user
    if not loose or fields.get("profile", "custom") == "custom":
        return fields
    defaults = default_fields(
        fields.get("model"), fields.get("method", "lora"), fields.get("stage", "sft")
    )
    return {**fields, **{name: defaults[name] for name in loose}}


def _more_problems(sound: Mapping[str, object], bad: set[str]) -> tuple[Problem, ...]:
    """Problems that the sound values have by themselves, with defaults in place of the bad ones."""
    try:
        resolve_job(JobSpec.parse(sound), PLANNED_FIELDS)
    except SpecError as error:
        return tuple(problem for problem in error.problems if problem.field not in bad)
    return ()


def _find_model(job: JobSpec, problems: list[Problem]) -> ModelSource | None:
    try:
        return find_model(job.model, job.revision)
    except ModelNotFound as error:
        problems += error.problems
        return None


def _find_gpu(job: JobSpec, problems: list[Problem]) -> Gpu | None:
    if job.gpu == "local":
        try:
            return local_gpu(index=job.device)
        except IndexError:
            count = len(this_machine().gpus)
            problems.append(
                Problem("device", f"there is no GPU {job.device} here", f"give 0 to {count - 1}")
            )
            return None
    if job.gpu not in gpus():
        problems.append(
            Problem("gpu", f"{job.gpu!r} is not a preset", f"choose local, {', '.join(gpus())}")
        )
    return gpus().get(job.gpu)


def _find_datasets(job: JobSpec, problems: list[Problem]) -> dict[str, Path]:
    named = {
        field: str(getattr(job, field))
        for field in ("dataset", "eval_dataset")
        if getattr(job, field)
    }
    found = {field: dataset_path(reference, job.stage) for field, reference in named.items()}
    problems += [
        _no_file(field, named[field]) for field, path in found.items() if not is_there(path)
    ]
    return found


def _with_adapter_found(job: JobSpec, problems: list[Problem]) -> JobSpec:
    """The job with the adapter that it goes on from by its whole path: the program runs in another folder."""
    if not job.adapter:
        return job
    folder = _absolute(job.adapter)
    if not is_there(folder, Path.is_dir):
        problems.append(
            Problem(
                "adapter", f"there is no folder {job.adapter}", "give the output folder of a run"
            )
        )
    return job.model_copy(update={"adapter": str(folder)})


def _find_mix(job: JobSpec, problems: list[Problem]) -> tuple[tuple[Path, float], ...]:
    if not job.mix.strip():
        return ()
    from core.dataset.rewrite.mix import parse_mix  # brings numpy, which nothing else here needs

    try:
        found = tuple((path.absolute(), weight) for path, weight in parse_mix(job.mix))
    except ValueError as error:
        problem, _, fix = str(error).partition("; ")
        problems.append(
            Problem("mix", problem, fix or "write one line for each file: path = weight")
        )
        return ()
    problems += [_no_file("mix", str(path)) for path, _weight in found if not is_there(path)]
    return found


def _no_file(field: str, reference: str) -> Problem:
    """What is written like a Hub id, and not like a file, is most likely meant as one."""
    is_hub_id = HUB_ID.fullmatch(reference) and not Path(reference).suffix
    fix = (
        "take a dataset of the Hub in first, then give the file that it became" if is_hub_id else ""
    )
    return Problem(
        field, f"there is no file {reference}", fix or "give the path of a JSONL file, or demo"
    )
