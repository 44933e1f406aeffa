"""Write a run's own copy of its rows, mixed, shortened and split once, where users can see them."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from core.dataset import find_leak
from core.dataset.report import ALL_LEAKED, ALL_LEAKED_FIX
from core.dataset.rewrite import Composed, Selection, compose, require_one_format
from core.job import DatasetError, Problem, SpecError
from core.resolve import ResolvedJob
from core.runs.bundle import data_manifest
from core.training.contract.files import sha256_of, write_json


def write_data(resolved: ResolvedJob, folder: Path) -> dict[str, object]:
    """Write data/ into the folder of a run, with its sources in manifest.json.

    Return the job fields that this changes, with paths relative to the folder. Raises OSError,
    SpecError for files that cannot be mixed.
    """
    data, job = folder / "data", resolved.job
    data.mkdir(parents=True)
    eval_file = resolved.datasets.get("eval_dataset")
    field = "mix" if resolved.mix else "dataset"
    num_leaked = 0
    try:
        train = _write_train(resolved, data)
        if eval_file:
            field = "eval_dataset"
            require_one_format([*resolved.datasets.values()], job.stage)
            compose([(eval_file, 1.0)], data / "eval.jsonl", Selection(stage=job.stage))
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
    leak = find_leak(data / "train.jsonl", data / "eval.jsonl", stage)
    if leak.is_total:
        raise DatasetError(Problem("eval_dataset", ALL_LEAKED, ALL_LEAKED_FIX))
    return len(leak.lines)


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
    return compose(_sources(resolved), folder / "train.jsonl", selection, folder / "eval.jsonl")


def _sources(resolved: ResolvedJob) -> tuple[tuple[Path, float], ...]:
    return ((resolved.datasets["dataset"], 1.0), *resolved.mix)
