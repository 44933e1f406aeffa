"""Files that a job names: datasets, a mix, an adapter. Reads the disk, writes nothing."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from core.job import JobSpec, Problem, SpecError
from core.job.places import in_time, is_there, require_allowed, unanswered, unquoted
from core.models import HUB_ID, PRESETS_DIR, ModelSource, settings_of_adapter
from core.training.contract.stages import STAGES

SECONDS_TO_READ_ADAPTER = 20.0
DEMO_DATASETS: Mapping[str, str] = {
    "language modeling": "data.jsonl",
    "preference": "preference.jsonl",
    "unpaired preference": "preference.jsonl",
    "prompt-only": "prompts.jsonl",
}
"""First dataset type that a stage accepts -> file of presets/demo that `demo` stands for."""


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
    """Return a path from the root. Quotes around it belong to it only if such a file is there."""
    path = _expanded(reference)
    plain = unquoted(reference)
    if plain != reference and not is_there(path, Path.exists):
        return _expanded(plain)
    return path


def _expanded(reference: str) -> Path:
    # Path.expanduser would raise for an unknown user
    return Path(os.path.expanduser(reference)).absolute()  # noqa: PTH111


def find_datasets(job: JobSpec, problems: list[Problem]) -> dict[str, Path]:
    """Return field -> file of the datasets that are there; add the problems of the others."""
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


def find_mix(job: JobSpec, problems: list[Problem]) -> tuple[tuple[Path, float], ...]:
    """Return the further training files with their weights; add what is wrong with them."""
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


def find_adapter(folder: Path, model: ModelSource, problems: list[Problem]) -> Mapping[str, object]:
    """Return the settings of an adapter that can continue over a model."""
    try:
        misfit = in_time(lambda: model.adapter_problem(folder), folder, SECONDS_TO_READ_ADAPTER)
    except OSError as error:
        misfit = unanswered("adapter", folder, error)
    problems += [misfit] if misfit else []
    return {} if misfit else settings_of_adapter(folder, model.shape)


def _no_file(field: str, reference: str) -> Problem:
    fix = "give the path of a JSONL file"
    if field != "mix":
        fix += ", or demo"
    if HUB_ID.fullmatch(reference) and not Path(reference).suffix:
        fix = "import the dataset from the Hub first, then give the imported file"
    return Problem(field, f"there is no file {reference}", fix)


def with_absolute_adapter(job: JobSpec, problems: list[Problem]) -> JobSpec:
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
