"""The run's own copy of its rows: mixed, shortened and split once, so that what can be seen is what is trained on."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from core.dataset import Composed, Share, compose, require_one_form
from core.job import DatasetError, SpecError
from core.resolve import ResolvedJob
from core.runs.bundle import data_manifest
from core.training.contract.files import sha256_of, write_json


def write_data(resolved: ResolvedJob, folder: Path) -> dict[str, object]:
    """Writes data/ into the folder of a run, with what it was made of in manifest.json.

    Returns the fields of the job that are settled thereby, paths relative to the folder. Raises SpecError for files
    that cannot be joined, OSError.
    """
    data, job = folder / "data", resolved.job
    data.mkdir(parents=True)
    has_own = "eval_dataset" in resolved.datasets
    field = "mix" if resolved.mix else "dataset"
    try:
        train = _write_train(resolved, data)
        if has_own:
            field = "eval_dataset"
            require_one_form([*resolved.datasets.values()], job.stage)
            compose(
                [(resolved.datasets["eval_dataset"], 1.0)],
                data / "eval.jsonl",
                Share(stage=job.stage),
            )
    except DatasetError as error:
        raise SpecError(*(replace(each, field=field) for each in error.problems)) from None
    parts = [
        {"file": path.name, "weight": weight, "rows": rows}
        for (path, weight), rows in zip(_sources(resolved), train.rows, strict=True)
    ]
    write_json(data / "manifest.json", data_manifest(data) | {"sources": parts})
    return {
        "dataset": "data/train.jsonl",
        "dataset_sha256": sha256_of(data / "train.jsonl"),
        "eval_dataset": "data/eval.jsonl" if (data / "eval.jsonl").exists() else "",
        "eval_fraction": job.eval_fraction if has_own or train.eval_rows else 0.0,
        "mix": "",
        "max_rows": 0,
    }


def writer_of_rows(resolved: ResolvedJob) -> Callable[[Path], Path] | None:
    """What writes the rows that a job trains on into a folder, and returns their file; None if that is its dataset."""
    return partial(_write_rows, resolved) if resolved.mix or resolved.job.max_rows else None


def _write_rows(resolved: ResolvedJob, folder: Path) -> Path:
    """Raises DatasetError, OSError."""
    _write_train(resolved, folder)
    return folder / "train.jsonl"


def _write_train(resolved: ResolvedJob, folder: Path) -> Composed:
    """Writes train.jsonl, and eval.jsonl if rows are held out. Raises DatasetError, OSError."""
    job = resolved.job
    share = Share(
        job.max_rows,
        0.0 if "eval_dataset" in resolved.datasets else job.eval_fraction,
        job.seed,
        job.stage,
    )
    return compose(_sources(resolved), folder / "train.jsonl", share, folder / "eval.jsonl")


def _sources(resolved: ResolvedJob) -> tuple[tuple[Path, float], ...]:
    return ((resolved.datasets["dataset"], 1.0), *resolved.mix)
