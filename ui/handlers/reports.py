"""Reports on data files, made once for each version of a file. Draws and changes nothing."""

import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from core.dataset import DatasetReport, check_file, check_in_child, counted
from core.dataset.report import file_problem, require_one_kind
from core.job import DatasetError, Problem, SpecError
from core.job.places import in_time, is_there
from core.resolve import ResolvedJob, dataset_path
from core.speed import RowStatistics
from core.training.contract.stages import STAGES
from ui.form import in_words

LARGE_FILE_BYTES = 4 * 2**20
"""Larger files are checked in a child process, so that they do not hold up the page."""
SECONDS_TO_CHECK = 30.0
"""Of a small file. Its disk may hang."""
BYTES_PER_TOKEN = 4
"""Of English text under the usual vocabularies. Used until the rows are tokenized."""
MAX_REMEMBERED = 32
GIVEN_UP = ("check_died", "check_too_long")
"""Codes of a report on a file that was not checked to its end."""
SECONDS_BETWEEN_TRIES = 30
"""A file whose check was given up is not read again at every edit."""
FileVersion = tuple[Path, int, int]
"""Path, time of the last change in ns, size in bytes."""


class NotChecked(Exception):
    """Check of a file that was given up. Another time it may be finished."""

    def __init__(self, report: DatasetReport) -> None:
        super().__init__(report)
        self.report = report
        self.since = time.monotonic()


_failures: dict[tuple[FileVersion, str, FileVersion | None], NotChecked] = {}


def checked(path: Path, stage: str, eval_path: Path | None = None) -> DatasetReport:
    """Return the report on a file, with the rows of `eval_path` that are in it too.

    Reads the files only if they have changed. Raises OSError.
    """
    files = file_version(path), stage, file_version(eval_path) if eval_path else None
    known = _failures.get(files)
    if known and time.monotonic() < known.since + SECONDS_BETWEEN_TRIES:
        return known.report
    try:
        return _report(*files)
    except NotChecked as failure:
        _failures[files] = failure
        while len(_failures) > MAX_REMEMBERED:
            del _failures[next(iter(_failures))]
        return failure.report


def file_version(path: Path) -> FileVersion:
    """Return what changes whenever a file is written. Raises OSError."""
    stat = in_time(path.stat, path)
    return path, stat.st_mtime_ns, stat.st_size


@lru_cache(maxsize=MAX_REMEMBERED)
def _report(file: FileVersion, stage: str, eval_file: FileVersion | None) -> DatasetReport:
    path, _modified, num_bytes = file
    eval_path = eval_file[0] if eval_file else None
    if num_bytes > LARGE_FILE_BYTES or (eval_file and eval_file[2] > LARGE_FILE_BYTES):
        report = check_in_child(path, stage, eval_path=eval_path)
        if report.problems and report.problems[0].code in GIVEN_UP:
            raise NotChecked(report)
        return report
    return in_time(lambda: check_file(path, stage, eval_path=eval_path), path, SECONDS_TO_CHECK)


def report_of(values: Mapping[str, object]) -> DatasetReport | None:
    """Return the report on the data of a form, None if there is no such file or it is refused."""
    stage = str(values["stage"])
    path = _file_of(values["dataset"], stage)
    if stage not in STAGES or path is None:
        return None
    try:
        return checked_beside(path, stage, _file_of(values.get("eval_dataset"), stage))
    except TimeoutError as error:
        problem = f"was not checked: {error.strerror}"
        return DatasetReport.refused(file_problem("unreadable", problem, "try again later"))


def _file_of(reference: object, stage: str) -> Path | None:
    """Return a file that a form names, None if it is not there or may not be read here."""
    try:
        path = dataset_path(str(reference), stage) if reference else None
    except SpecError:
        return None
    return path if path and is_there(path) else None


def checked_beside(path: Path, stage: str, eval_path: Path | None) -> DatasetReport:
    """Return the report as `checked` does, without a comparison if `eval_path` is no text.

    The check of that file by itself says why. Raises OSError.
    """
    try:
        return checked(path, stage, eval_path)
    except DatasetError:
        return checked(path, stage)


def misfit_of(resolved: ResolvedJob | None) -> str:
    """Return which files of a job hold rows of different kinds, "" if none do."""
    if resolved is None:
        return ""
    try:
        reports = [
            (field, path.name, checked(path, resolved.job.stage)) for field, path in resolved.files
        ]
        require_one_kind([each for each in reports if each[2].dataset_type])
    except SpecError as error:
        return f"{in_words(error)}."
    except OSError:  # the check of that file by itself says why
        return ""
    return ""


def estimated_rows(found: ResolvedJob) -> RowStatistics | None:
    """Return the number of rows of a job and their mean length, guessed from the file size."""
    path = found.datasets["dataset"]
    stage = found.job.stage
    report = checked(path, stage)
    if not report.rows:
        return None
    mean_tokens = max(1.0, path.stat().st_size / report.rows / BYTES_PER_TOKEN)
    mixed_in = sum(weight * checked(more, stage).rows for more, weight in found.mix)
    return RowStatistics(report.rows + round(mixed_in), mean_tokens)


def require_usable(field: str, path: Path, report: DatasetReport) -> None:
    """Raise SpecError if a data file has problems."""
    if report.is_usable:
        return
    first = report.problems[0]
    if first.field == "file":
        raise SpecError(Problem(field, first.message, first.fix))
    where = f"line {first.line:,}"
    if first.field != "row":
        where += f", {first.field}"
    lines = counted(report.num_problems, "line")
    problem = f"{lines} of {path.name} cannot be used. First problem: {where}: {first.message}"
    raise SpecError(Problem(field, problem, first.fix))
