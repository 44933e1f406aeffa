"""Commands of `python app.py`: read flags and job files, call core, print. Never imports Gradio."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from core import dataset, runs
from core.dataset import DatasetReport, counted
from core.dataset.intake import import_dataset, is_hub_dataset, must_be_imported
from core.dataset.preview import Preview
from core.dataset.token_lengths import Lengths, length_problems
from core.device import doctor as machine_doctor
from core.device import this_machine
from core.job import JobSpec, PreviewError, Problem, SpecError
from core.memory import MemoryEstimate
from core.memory.trace_check import TraceRequest, estimate_by_tracing
from core.models import demo_fields, find_model
from core.resolve import ResolvedJob, dataset_path, is_there, resolve
from core.runs import Home
from core.speed import RowStatistics
from core.training.contract.stages import DEFAULT_STAGE
from core.wording import fix_label, memory, memory_parts, speed_sentence, verdict_sentence
from ui.terminal.follow import start_and_follow
from ui.terminal.printing import out, print_json, report_errors, say, table
from ui.terminal.runs import manage_runs

SECONDS_TO_MEASURE = 60
"""Time for measuring rows before a run starts. Of a larger file, only the first rows count."""
MAX_PROBLEMS = 20
"""Problems of a file that are printed; --json has more."""


def run(command: str, **flags: object) -> int:
    """Run one of COMMANDS and return the exit code. Print errors as one line for each problem."""
    return report_errors(partial(COMMANDS[command], **flags))


def train(
    *, home: str | None = None, demo: bool = False, job: str | None = None, **fields: str
) -> int:
    """Train in the foreground and return the exit code. Raises TailorError."""
    place = Home.find(home)
    job_fields = _job_fields(job, fields)
    if demo:
        stage = str(job_fields.get("stage", DEFAULT_STAGE))
        job_fields = {**demo_fields(stage), **job_fields}
    job_fields |= _import_data(place, job_fields)
    resolved = resolve(job_fields)
    resolved.require_trainable()
    _require_sound_data(resolved)
    resolved = resolve(job_fields, rows=_measure_rows(place, resolved))
    _print_choices(resolved)
    return start_and_follow(place, runs.create(place, resolved, resolved.forecast()))


def estimate(
    *, home: str | None = None, job: str | None = None, json: bool = False, **fields: str
) -> int:
    """Print the memory and speed of a job. Raises TailorError."""
    resolved = resolve(_job_fields(job, fields))
    found = _estimate_memory(resolved, home)
    if json:
        forecast = resolved.forecast() or {"fixes": [], "speed": {}}
        print_json(found.to_json() | forecast)
    else:
        _print_estimate(resolved, found)
    return 0


def check(
    *,
    file: str,
    eval_file: str | None = None,
    home: str | None = None,
    stage: str = "sft",
    model: str | None = None,
    max_length: str = "2048",
    json: bool = False,
) -> int:
    """Print what a dataset contains. Return 0 if it is usable, 2 if not. Raises TailorError."""
    job = JobSpec.parse({"stage": stage, "max_length": max_length})
    path = _data_file(file, home, stage)
    eval_path = _data_file(eval_file, home, stage) if eval_file else None
    report = dataset.check_in_child(path, stage, eval_path=eval_path)
    lengths = None
    if model and report.is_usable:
        found = find_model(model, "main")
        if problems := tuple(found.problems(stage)):
            raise SpecError(*problems)
        with Preview(path, found.location, stage=stage) as preview:
            lengths = preview.all_lengths(job.max_length)
    if json:
        print_json(report.to_json() | (lengths.to_json() if lengths else {}))
    else:
        out.print(report.summary(), style="bold")
        if lengths:
            _print_lengths(lengths, job.max_length)
        _print_problems(report)
        if report.leak_warning:
            say(report.leak_warning)
    return 0 if report.is_usable else 2


def doctor(*, home: str | None = None, json: bool = False) -> int:
    """Print what this machine has and lacks. Raises SpecError."""
    machine = this_machine(Home.find(home).path)
    findings = machine_doctor.diagnose(machine)
    if json:
        print_json(machine_doctor.to_json(machine, findings))
    else:
        rows = [(each.what, each.found, each.fix and f"→ {each.fix}") for each in findings]
        out.print(table(("", "", ""), rows))
    return 0


COMMANDS: Mapping[str, Callable[..., int]] = {
    "train": train,
    "estimate": estimate,
    "check": check,
    "runs": manage_runs,
    "doctor": doctor,
}


def _job_fields(job_file: str | None, flags: Mapping[str, str]) -> dict[str, object]:
    """Return the fields of a job file, overridden by flags. Raises SpecError."""
    given = {name.removeprefix("field_"): value for name, value in flags.items()}
    if job_file is None:
        return dict(given)
    try:
        fields = json.loads(Path(job_file).read_text(encoding="utf-8-sig"))
    except OSError as error:
        problem = f"{job_file}: {error.strerror}"
        raise SpecError(Problem("job file", problem, "give the path of a job file")) from None
    except (ValueError, RecursionError) as error:
        problem = f"{job_file} is not JSON: {error}"
        raise SpecError(Problem("job file", problem, "correct it")) from None
    if not isinstance(fields, dict):
        fix = "give a JSON object of job fields"
        raise SpecError(Problem("job file", f"{job_file} is not a JSON object", fix))
    return fields | given


def _import_data(home: Home, fields: Mapping[str, object]) -> dict[str, object]:
    """Import datasets that are tables or on the Hub. Return their fields with the new files."""
    imported = {}
    for name in ("dataset", "eval_dataset"):
        source = str(fields.get(name) or "")
        if must_be_imported(source):
            imported[name] = str(_import_file(home, source))
    return dict(imported)


def _data_file(source: str, home: str | None, stage: str) -> Path:
    """Return the file of a dataset, imported if it must be. Raises TailorError, OSError."""
    if must_be_imported(source):
        return _import_file(Home.find(home), source)
    path = dataset_path(source, stage)
    if not is_there(path):
        fix = "give the path of a JSONL file"
        raise SpecError(Problem("file", f"there is no file {source}", fix))
    return path


def _import_file(home: Home, source: str) -> Path:
    """Convert a table or a dataset on the Hub to JSON lines. Raises DatasetError, OSError."""
    say(f"Importing {source} ...")
    path = source if is_hub_dataset(source) else str(dataset_path(source))
    imported = import_dataset(path, home.new_upload_folder())
    summary = f"{counted(imported.rows, 'row')} in {imported.path}"
    say(" ".join((*imported.actions, summary)))
    return imported.path


def _require_sound_data(resolved: ResolvedJob) -> None:
    """Raise SpecError with the first broken rows of the data; warn of rows also evaluated on."""
    eval_file = resolved.datasets.get("eval_dataset")
    for field, path in resolved.files:
        other = None if field == "eval_dataset" else eval_file
        report = dataset.check_file(path, resolved.job.stage, eval_path=other)
        if not report.is_usable:
            problems = (each.for_user() for each in report.problems[:MAX_PROBLEMS])
            raise SpecError(
                *(replace(each, field=f"{field}: {path.name}, {each.field}") for each in problems)
            )
        if report.leak_warning:
            say(f"{path.name}: {report.leak_warning}")


def _measure_rows(home: Home, resolved: ResolvedJob) -> RowStatistics | None:
    """Measure the rows; None, with a message, if that is impossible, as without a tokenizer.

    Raises SpecError if they cannot be trained on, or if max_length cuts off too many answers.
    """
    job = resolved.job
    deadline = time.monotonic() + SECONDS_TO_MEASURE
    rows = Preview(
        resolved.datasets["dataset"],
        resolved.model.location,
        job.revision,
        job.assistant_only_loss,
        stage=job.stage,
        cache=home.path / "lengths",
        write_rows=runs.writer_of_rows(resolved),
    )
    try:
        with out.status("Measuring the rows"), rows as preview:
            preview.all_lengths(job.max_length, is_cancelled=lambda: time.monotonic() > deadline)
            lengths = preview.measured()
    except PreviewError as error:
        say(f"The rows are not measured: {error.reason}")
        return None
    if problems := length_problems(lengths, job):
        raise SpecError(*problems)
    if not lengths.readable:
        return None
    return resolved.row_statistics(lengths.at(job.max_length))


def _estimate_memory(resolved: ResolvedJob, home: str | None) -> MemoryEstimate:
    """Estimate the memory; trace one step for an unknown architecture. Raises TailorError."""
    if resolved.model.shape:
        return resolved.estimate()
    say("Tailor does not know this architecture, so it traces one training step.")
    request = TraceRequest(resolved.job, resolved.model.config, resolved.gpu)
    return estimate_by_tracing(request, Home.find(home).path / "traces")


def _print_estimate(resolved: ResolvedJob, estimate: MemoryEstimate) -> None:
    title = f"{resolved.model.title} on {resolved.gpu.name}"
    out.print(f"{title}: {verdict_sentence(estimate)}", style="bold")
    rows = [(each.title, memory(each.bytes), each.note) for each in memory_parts(estimate)]
    out.print(table(("part", "memory", ""), rows))
    if speed := resolved.speed():
        out.print(f"{speed_sentence(speed)}, if every row fills max_length")
    _print_choices(resolved)
    for fix in resolved.fixes():
        out.print(f"{fix_label(fix)}\n  {fix.why}")


def _print_choices(resolved: ResolvedJob) -> None:
    for choice in resolved.plan.choices:
        out.print(f"{choice.field} = {choice.value}: {choice.reason}")


def _print_problems(report: DatasetReport) -> None:
    say(*report.problems[:MAX_PROBLEMS])
    if report.num_problems > MAX_PROBLEMS:
        say(f"... and {counted(report.num_problems - MAX_PROBLEMS, 'more problem')}")
    say(*(f"warning: {each}" for each in report.warnings[:MAX_PROBLEMS]))
    if report.num_warnings > MAX_PROBLEMS:
        say(f"... and {counted(report.num_warnings - MAX_PROBLEMS, 'more warning')}")


def _print_lengths(lengths: Lengths, max_length: int) -> None:
    sizes = f"{lengths.p50:,} (median), {lengths.p95:,} (95 %), {lengths.max:,} (longest)"
    out.print(f"Tokens per row: {sizes}")
    cut, lost = counted(lengths.truncated_rows, "row"), lengths.fully_masked_rows
    out.print(f"max_length {max_length} cuts {cut}; {lost:,} lose the whole answer")
