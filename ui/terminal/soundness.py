"""Checks before a run starts: the rows, alone and as the model reads them.

`check --model` and `train` both call this, so that they say the same.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from core import dataset, runs
from core.dataset import DatasetReport
from core.dataset.preview import Preview, PreviewInfo
from core.dataset.rewrite import in_child
from core.dataset.token_lengths import RowLengths, length_problems
from core.job import DatasetError, PreviewError, Problem, SpecError
from core.resolve import ResolvedJob
from core.runs import Home
from ui.terminal.printing import MAX_PROBLEMS, out, say


@dataclass(frozen=True)
class MeasuredRows:
    """Lengths of the rows of a job, and why it should not start on them."""

    lengths: RowLengths
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    """Sentences about how the model reads the rows, and what it does not see of them."""


@dataclass(frozen=True)
class Soundness:
    """Files of a job whose rows are sound."""

    refusals: tuple[Problem, ...]
    """Reasons why a job should not start on them."""
    hashes: Mapping[Path, str]
    """File -> SHA-256 of what was checked."""


def require_sound_files(
    resolved: ResolvedJob, known: Mapping[str, DatasetReport] | None = None
) -> Soundness:
    """Check the rows of a job, and warn of leaked ones.

    `known` holds reports by the field of their file. Raises SpecError with broken rows.
    """
    refusals: list[Problem] = []
    hashes = {}
    eval_file = resolved.datasets.get("eval_dataset")
    for field, path in resolved.files:
        other = None if field == "eval_dataset" else eval_file
        report = (known or {}).get(field)
        if report is None:
            report = dataset.check_file(path, resolved.job.stage, eval_path=other)
        if not report.is_usable:
            raise SpecError(*_problems(report, f"{field}: {path.name}"))
        hashes[path] = report.sha256
        refusals += report.refusals(resolved.job, field, path.name)
        if report.leak_warning:
            say(f"{path.name}: {report.leak_warning}")
    _require_one_format(resolved)
    return Soundness(tuple(refusals), hashes)


def _require_one_format(resolved: ResolvedJob) -> None:
    """Raise SpecError if the files of a job cannot be trained on together."""
    (_first_field, first), *others = resolved.files
    for field, path in others:
        try:
            in_child.require_one_format([first, path], resolved.job.stage)
        except DatasetError as error:
            raise SpecError(*(replace(each, field=field) for each in error.problems)) from None


def measure_rows(
    home: Home, resolved: ResolvedJob, seconds: float = math.inf
) -> MeasuredRows | None:
    """Measure the rows; None, with a message, if that is impossible.

    After so many seconds the rows measured by then count. Raises SpecError if the model is to
    blame: a training would need the same files of it.
    """
    job = resolved.job
    deadline = time.monotonic() + seconds
    try:
        lengths, info = _measure(home, resolved, deadline)
    except PreviewError as error:
        of_model = [each for each in error.problems if each.field == "model"]
        if of_model:
            raise SpecError(*of_model) from None
        say(f"The rows are not measured: {error.reason}")
        return None
    lost = (f"{each}." for each in lengths.lost)
    return MeasuredRows(lengths, length_problems(lengths, job), (*info.notes, *lost))


def measure_evaluation_rows(
    home: Home, resolved: ResolvedJob, seconds: float = math.inf
) -> RowLengths | None:
    """Measure the rows of the evaluation file; None without one, or if that is impossible."""
    if "eval_dataset" not in resolved.datasets:
        return None
    try:
        lengths, _info = _measure(home, resolved, time.monotonic() + seconds, "eval_dataset")
    except PreviewError as error:
        say(f"The rows for evaluation are not measured: {error.reason}")
        return None
    return lengths


def _measure(
    home: Home, resolved: ResolvedJob, deadline: float, field: str = "dataset"
) -> tuple[RowLengths, PreviewInfo]:
    """Return the lengths of the rows of a file. Raises PreviewError."""
    job = resolved.job
    rows = Preview.for_job(
        job,
        resolved.datasets[field],
        resolved.model.location,
        cache=home.path / "lengths",
        write_rows=runs.writer_of_rows(resolved) if field == "dataset" else None,
    )
    with out.status("Measuring the rows"), rows as preview:
        preview.all_lengths(job.max_length, is_cancelled=lambda: time.monotonic() > deadline)
        return preview.measured(), preview.info()


def _problems(report: DatasetReport, where: str) -> tuple[Problem, ...]:
    """Return the problems of a file, each once."""
    found = [group.for_user() for group in report.problem_groups[:MAX_PROBLEMS]]
    return tuple(replace(each, field=f"{where}, {each.field}") for each in found)
