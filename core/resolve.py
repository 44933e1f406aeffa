"""What a job stands for on this machine: its model found, its card, its files. Reads the disk and, for a model that is
only on the Hub, the network; changes nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from core.device import local_gpu
from core.fit import Cell, Fix, largest_batch, suggest_fixes, use_the_room
from core.job import JobSpec, Problem, SpecError
from core.memory import MemoryEstimate, estimate
from core.methods import METHODS
from core.models import DEMO_DIR, ModelNotFound, ModelSource, find_model
from core.presets import PRESETS_DIR, Gpu, gpus, recipes
from core.speed import RowStatistics, Speed, predict_speed

DEMO_DATASET = PRESETS_DIR / "demo" / "data.jsonl"


@dataclass(frozen=True)
class ResolvedJob:
    """A job together with the things that it names."""

    job: JobSpec
    model: ModelSource
    gpu: Gpu
    datasets: Mapping[str, Path]
    """Field (`dataset`, `eval_dataset`) -> file; a field that names nothing is absent."""

    def estimate(self) -> MemoryEstimate:
        """The memory this job takes. Raises SpecError if the job is impossible or the architecture is not known."""
        if self.model.shape is None:
            problem = f"there is no estimate for the architecture of {self.job.model} yet"
            raise SpecError((Problem("model", problem, "choose a Llama, Mistral, Qwen, Gemma, Phi or similar model"),))
        return estimate(self.job, self.model.shape, self.gpu)

    def speed(self, rows: RowStatistics | None = None) -> Speed | None:
        """The forecast of its speed; None where there is none."""
        return predict_speed(self.job, self.model.shape, self.gpu, rows) if self.model.shape else None

    def fixes(self, rows: RowStatistics | None = None) -> tuple[Fix, ...]:
        """What would make it fit, or, if it fits with room to spare, faster. Raises SpecError as `estimate` does."""
        shape = self.model.shape
        if shape is None or self.estimate().capacity_bytes == 0:
            return ()
        return suggest_fixes(self.job, shape, self.gpu, rows) or use_the_room(self.job, shape, self.gpu, rows)

    def largest_batches(self, cards: Sequence[Gpu]) -> tuple[Cell, ...]:
        """The largest batch that fits, by method and card, at the job's length with checkpointing.

        Empty for an architecture that is not known. Raises SpecError if the model is shorter than that length.
        """
        shape = self.model.shape
        jobs = [JobSpec.parse({"method": method, "max_length": self.job.max_length}) for method in METHODS]
        return tuple(
            Cell(self.job.model, job.method, card.id, largest_batch(job, shape, card))
            for job, card in product(jobs, cards)
            if shape
        )

    def forecast(self, rows: RowStatistics | None = None) -> dict[str, object]:
        """Memory, speed and fixes as plain values: what `estimate --json` prints. Raises SpecError."""
        speed = self.speed(rows)
        fixes = [fix.to_json() for fix in self.fixes(rows)]
        return self.estimate().to_json() | {"fixes": fixes, "speed": speed.to_json() if speed else {}}


def resolve(fields: Mapping[str, object]) -> ResolvedJob:
    """The job that these field values ask for, with everything that it names.

    Raises SpecError with every problem at once: of the values, and of the things that the sound values name.
    """
    try:
        job = JobSpec.parse(fields)
    except SpecError as error:
        bad = {problem.field for problem in error.problems}
        sound = {name: value for name, value in fields.items() if name not in bad}
        raise SpecError(error.problems + _more_problems(sound, bad)) from None
    return resolve_job(job)


def resolve_job(job: JobSpec) -> ResolvedJob:
    """The things that a sound job names. Raises SpecError with every one that is not there."""
    problems: list[Problem] = []
    model = _find_model(job, problems)
    gpu = _find_gpu(job, problems)
    datasets = _find_datasets(job, problems)
    if problems or model is None or gpu is None:
        raise SpecError(tuple(problems))
    return ResolvedJob(job, model, gpu, datasets)


def recipe_fields(recipe: str) -> dict[str, object]:
    """The field values of a recipe in presets/recipes."""
    return dict(recipes()[recipe].fields)


def default_fields(model: object, method: object) -> dict[str, object]:
    """The value of every field that nobody has set: JobSpec's, or the method's, or for the demo model its recipe's."""
    fields = {name: field.default for name, field in JobSpec.model_fields.items()}
    record = METHODS.get(str(method))
    recipe = recipe_fields("demo") if model == "demo" else {}
    return fields | (dict(record.defaults) if record else {}) | recipe


def reference_of(location: str) -> str:
    """What a person calls the model at a location that the training program was given."""
    return "demo" if location == str(DEMO_DIR) else location


def dataset_path(reference: str) -> Path:
    """The file that a dataset's name stands for: `demo` or a path."""
    return DEMO_DATASET if reference == "demo" else Path(reference).expanduser().absolute()


def _more_problems(sound: Mapping[str, object], bad: set[str]) -> tuple[Problem, ...]:
    """Problems that the sound values have by themselves, with defaults in place of the bad ones."""
    try:
        resolve_job(JobSpec.parse(sound))
    except SpecError as error:
        return tuple(problem for problem in error.problems if problem.field not in bad)
    return ()


def _find_model(job: JobSpec, problems: list[Problem]) -> ModelSource | None:
    try:
        return find_model(job.model, job.revision)
    except ModelNotFound as error:
        problems.append(Problem("model", error.problem, error.fix))
        return None


def _find_gpu(job: JobSpec, problems: list[Problem]) -> Gpu | None:
    if job.gpu == "local":
        return local_gpu()
    if job.gpu not in gpus():
        problems.append(Problem("gpu", f"{job.gpu!r} is not a preset", f"choose local, {', '.join(gpus())}"))
    return gpus().get(job.gpu)


def _find_datasets(job: JobSpec, problems: list[Problem]) -> dict[str, Path]:
    named = {field: str(getattr(job, field)) for field in ("dataset", "eval_dataset") if getattr(job, field)}
    found = {field: dataset_path(reference) for field, reference in named.items()}
    problems += [
        Problem(field, f"there is no file {named[field]}", "give the path of a JSONL file, or demo")
        for field, path in found.items()
        if not path.is_file()
    ]
    return found
