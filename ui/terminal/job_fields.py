"""Job of a command: its fields from a job file and flags, its data, its rows. Prints notes."""

from collections.abc import Callable, Mapping
from pathlib import Path

from core.dataset.intake import must_be_imported
from core.job import JobSpec, Problem, SpecError
from core.resolve import ResolvedJob
from core.runs import Home
from core.speed import RowStatistics
from core.training.contract.stages import DEFAULT_STAGE
from ui.terminal.data_files import DataFinder
from ui.terminal.printing import out, say
from ui.terminal.soundness import measure_evaluation_rows, measure_rows

SECONDS_TO_MEASURE = 60
"""Time for measuring rows before a run starts. Of a larger file, only the first rows count."""


def fields_of_job(job_file: str | None, flags: Mapping[str, str]) -> dict[str, object]:
    """Return the fields of a job file, overridden by flags. Raises SpecError."""
    given = {name.removeprefix("field_"): value for name, value in flags.items()}
    if job_file is None:
        return dict(given)
    try:
        text = Path(job_file).read_text(encoding="utf-8-sig")
    except OSError as error:
        problem = f"{job_file}: {error.strerror}"
        raise SpecError(Problem("job file", problem, "give the path of a job file")) from None
    except UnicodeDecodeError:
        problem = f"{job_file} is not JSON: it is no text in UTF-8"
        raise SpecError(Problem("job file", problem, "correct it")) from None
    return JobSpec.fields_of(text, job_file) | given


def require_choice(job_fields: Mapping[str, object]) -> None:
    """Refuse a job that names neither model nor data. Raises SpecError."""
    if not any(job_fields.get(name) for name in ("model", "dataset", "mix", "adapter")):
        problem = "is missing, and so is the model: nothing says what to train"
        fix = "give --model and --dataset, or --demo to try the demo"
        raise SpecError(Problem("dataset", problem, fix))


def find_data(
    home: Home, fields: Mapping[str, object], columns: str, split_text: str
) -> dict[str, object]:
    """Return the fields of datasets that must be imported, mapped or split, with the new files."""
    finder = DataFinder(
        str(home.path), str(fields.get("stage", DEFAULT_STAGE)), columns, split_text
    )
    found: dict[str, object] = {}
    for name in ("dataset", "eval_dataset"):
        source = str(fields.get(name) or "")
        is_rewritten = (columns or split_text) and (source or name == "dataset")
        if must_be_imported(source) or is_rewritten:
            data = finder.find(source or "demo", name, may_be_ready=name == "eval_dataset")
            say(*data.actions)
            found[name] = str(data.path)
    return found


def row_statistics(
    home: Home, resolved: ResolvedJob, tell: Callable[..., object] = out.print
) -> RowStatistics | None:
    """Return what is known of the rows; None if they cannot be measured. Raises SpecError."""
    measured = measure_rows(home, resolved, SECONDS_TO_MEASURE)
    if measured is None:
        return None
    if measured.problems:
        raise SpecError(*measured.problems)
    for note in measured.notes:
        tell(note)
    if not measured.lengths.readable:
        return None
    max_length = resolved.job.max_length
    evaluation = measure_evaluation_rows(home, resolved, SECONDS_TO_MEASURE)
    of_evaluation = evaluation.at(max_length) if evaluation else None
    return resolved.row_statistics(measured.lengths.at(max_length), of_evaluation)
