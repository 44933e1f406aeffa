"""Write a run's own copy of its rows, mixed, shortened and split once, where users can see them."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from core.dataset.report import ALL_LEAKED, ALL_LEAKED_FIX
from core.dataset.rewrite import Composed, Selection, in_child
from core.job import DatasetError, Problem, SpecError
from core.resolve import ResolvedJob
from core.training.contract.files import sha256_of, write_json


def write_data(
    resolved: ResolvedJob, folder: Path, checked: Mapping[Path, str]
) -> dict[str, object]:
    """Write data/ into the folder of a run, with its sources in manifest.json.

    `checked` holds the SHA-256 of the files whose rows were checked. Return the job fields that
    this changes, with paths relative to the folder. Raises OSError, SpecError for files that have
    changed or cannot be mixed.
    """
    data = folder / "data"
    data.mkdir(parents=True)
    # No other program changes the copies: what is hashed is what is written.
    with TemporaryDirectory(prefix=".copies-", dir=folder) as place:
        return _write_rows_of(_copied(resolved, Path(place), checked), data)


def _copied(resolved: ResolvedJob, place: Path, checked: Mapping[Path, str]) -> ResolvedJob:
    """Copy the files of a job, and return the same job on the copies. Raises SpecError, OSError."""
    copies: list[Path] = []
    for number, (field, path) in enumerate(resolved.files):
        copy = place / str(number) / path.name
        copy.parent.mkdir()
        shutil.copyfile(path, copy)
        expected = checked.get(path, "")
        if expected and sha256_of(copy) != expected:
            problem = f"{path.name} has changed since its rows were checked"
            raise SpecError(Problem(field, problem, "start again"))
        expected = resolved.job.dataset_sha256
        if field == "dataset" and expected and sha256_of(copy) != expected:
            problem = f"{path.name} has changed: its SHA-256 is no longer {expected[:12]}…"
            raise SpecError(Problem(field, problem, "empty dataset_sha256 to use it as it is"))
        copies.append(copy)
    datasets = dict(zip(resolved.datasets, copies, strict=False))
    mixed = copies[len(datasets) :]
    mix = tuple((copy, weight) for copy, (_path, weight) in zip(mixed, resolved.mix, strict=True))
    return replace(resolved, datasets=datasets, mix=mix)


def _write_rows_of(resolved: ResolvedJob, data: Path) -> dict[str, object]:
    """Write the rows of a job and the manifest, and return the fields that name them."""
    job = resolved.job
    eval_file = resolved.datasets.get("eval_dataset")
    field = "mix" if resolved.mix else "dataset"
    num_leaked = 0
    try:
        train = _write_train(resolved, data)
        if eval_file:
            field = "eval_dataset"
            in_child.require_one_format([*resolved.datasets.values()], job.stage)
            in_child.compose([(eval_file, 1.0)], data / "eval.jsonl", Selection(stage=job.stage))
            num_leaked = _require_new_rows(data, job.stage)
    except DatasetError as error:
        raise SpecError(*(replace(each, field=field) for each in error.problems)) from None
    sources = [
        {"file": path.name, "weight": weight, "rows": rows}
        for (path, weight), rows in zip(_sources(resolved), train.rows, strict=True)
    ]
    manifest = {**data_manifest(data), "sources": sources, "leaked_eval_rows": num_leaked}
    write_json(data / "manifest.json", manifest)
    fields: dict[str, object] = {
        "dataset": "data/train.jsonl",
        "dataset_sha256": sha256_of(data / "train.jsonl"),
        "mix": "",
        "max_rows": 0,
    }
    if (data / "eval.jsonl").exists():
        return {**fields, "eval_dataset": "data/eval.jsonl"}
    return {**fields, "eval_dataset": "", "eval_fraction": 0.0}


def _require_new_rows(data: Path, stage: str) -> int:
    """Return the number of evaluation rows that are trained on too. Raises DatasetError if all
    are."""
    train, held_out = data / "train.jsonl", data / "eval.jsonl"
    num_leaked, num_rows = in_child.count_leaked(train, held_out, stage)
    if 0 < num_leaked == num_rows:
        raise DatasetError(Problem("eval_dataset", ALL_LEAKED, ALL_LEAKED_FIX))
    return num_leaked


def writer_of_rows(resolved: ResolvedJob) -> Callable[[Path], Path] | None:
    """Return a function that writes the rows of a job into a folder and returns their file.

    None if these are simply the rows of its dataset.
    """
    if resolved.mix or resolved.job.max_rows:
        return partial(_write_rows, resolved)
    return None


def _write_rows(resolved: ResolvedJob, folder: Path) -> Path:
    """Raises DatasetError, OSError."""
    _write_train(resolved, folder)
    return folder / "train.jsonl"


def _write_train(resolved: ResolvedJob, folder: Path) -> Composed:
    """Write train.jsonl, and eval.jsonl if rows are held out. Raises DatasetError, OSError."""
    job = resolved.job
    held_out = 0.0 if "eval_dataset" in resolved.datasets else job.eval_fraction
    selection = Selection(job.max_rows, held_out, job.seed, job.stage)
    target, eval_target = folder / "train.jsonl", folder / "eval.jsonl"
    return in_child.compose(_sources(resolved), target, selection, eval_target)


def _sources(resolved: ResolvedJob) -> tuple[tuple[Path, float], ...]:
    return ((resolved.datasets["dataset"], 1.0), *resolved.mix)


def data_manifest(folder: Path) -> dict[str, object]:
    """Return size and hash of each data file in a folder."""
    files = sorted(folder.glob("*.jsonl"))
    return {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in files}
