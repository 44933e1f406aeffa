"""The command line's face: reads flags and job files, calls core, prints. Never imports gradio."""

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from core import dataset, runs
from core.dataset import counted, import_dataset, is_hub_dataset, must_be_imported
from core.dataset.preview import Lengths, Preview
from core.device import this_machine
from core.device.doctor import diagnose
from core.device.doctor import to_json as doctors_report
from core.job import JobSpec, PreviewError, Problem, SpecError
from core.memory import MemoryEstimate
from core.memory.trace_check import TraceRequest, estimate_by_tracing
from core.models import demo_fields, find_model
from core.resolve import ResolvedJob, dataset_path, is_there, resolve
from core.runs import Home
from core.speed import RowStatistics
from core.training.contract.stages import STAGES
from core.wording import fix_label, gib, speed_sentence, verdict_sentence
from ui.terminal.printing import bad_input, out, print_json, table
from ui.terminal.runs import manage_runs, train_and_follow

SECONDS_TO_MEASURE = 60
"""How long the rows may be measured before a run starts; of a larger file, those that were measured by then decide."""


def train(
    home: str | None = None, demo: bool = False, job: str | None = None, **fields: str
) -> int:
    """Trains in the foreground: a detached worker trains, this process watches. Returns the exit code."""
    with bad_input() as failure:
        place = Home.find(home)
        asked = (dict(demo_fields()) if demo else {}) | _fields(job, fields)
        asked |= _taken_in(place, asked)
        resolved = resolve(asked)
        resolved.require_trainable()
        _require_sound_data(resolved)
        resolved = resolve(asked, rows=_measure(place, resolved))
        _tell_choices(resolved)
        run = runs.create(place, resolved, resolved.forecast())
        return train_and_follow(place, run)
    return failure.code


def estimate(
    home: str | None = None, job: str | None = None, json: bool = False, **fields: str
) -> int:
    """Prints what a job will take. Returns the exit code."""
    with bad_input() as failure:
        resolved = resolve(_fields(job, fields))
        found = resolved.estimate() if resolved.model.shape else _traced(resolved, Home.find(home))
        if json:
            print_json(found.to_json() | (resolved.forecast() or {"fixes": [], "speed": {}}))
        else:
            _print_estimate(resolved, found)
        return 0
    return failure.code


def _traced(resolved: ResolvedJob, home: Home) -> MemoryEstimate:
    """The estimate of an architecture that has none of its own. Raises TraceError."""
    print(
        "This architecture has no estimate of its own: one step of it is traced.", file=sys.stderr
    )
    request = TraceRequest(resolved.job, resolved.model.config, resolved.gpu)
    return estimate_by_tracing(request, home.path / "traces")


def _print_estimate(resolved: ResolvedJob, found: MemoryEstimate) -> None:
    out.print(
        f"{resolved.model.title} on {resolved.gpu.name}: {verdict_sentence(found)}", style="bold"
    )
    out.print(
        table(
            ("", "GiB", ""), [(each.name, gib(each.bytes), each.note) for each in found.components]
        )
    )
    if speed := resolved.speed():
        out.print(f"{speed_sentence(speed)}, if every row fills max_length")
    _tell_choices(resolved)
    for fix in resolved.fixes():
        out.print(f"{fix_label(fix)}\n  {fix.why}")


def check(
    file: str,
    home: str | None = None,
    stage: str = "sft",
    model: str | None = None,
    max_length: str = "2048",
    json: bool = False,
) -> int:
    """Prints what a dataset holds and, for a model, how long its rows are. Returns 0 if it is usable, 2 if not."""
    with bad_input() as failure:
        if stage not in STAGES:
            raise SpecError(
                Problem(
                    "stage",
                    f"{stage!r} is not one of {', '.join(STAGES)}",
                    "choose one of these",
                )
            )
        limit = JobSpec.parse({"max_length": max_length}).max_length
        path = (
            _take_in(Home.find(home), file) if must_be_imported(file) else dataset_path(file, stage)
        )
        if not is_there(path):
            raise SpecError(
                Problem("file", f"there is no file {file}", "give the path of a JSONL file")
            )
        report = dataset.check_in_child(path, stage)
        lengths = _lengths(path, model, limit, stage) if model and report.is_usable else None
        if json:
            print_json(report.to_json() | (lengths.to_json() if lengths else {}))
        else:
            out.print(report.summary(), style="bold")
            if lengths:
                cut = f"{counted(lengths.truncated_rows, 'row')}; without an answer left: {lengths.fully_masked_rows:,}"
                out.print(
                    f"{lengths.p50:,} tokens at the median, {lengths.p95:,} at 95 %, {lengths.max:,} at most"
                )
                out.print(f"Cut at max_length {max_length}: {cut}")
            for problem in report.problems:
                print(problem, file=sys.stderr)
        return 0 if report.is_usable else 2
    return failure.code


def _lengths(path: Path, model: str, max_length: int, stage: str) -> Lengths:
    """How long the rows are to a model. Raises ModelNotFound, PreviewError."""
    with Preview(path, find_model(model, "main").location, stage=stage) as preview:
        return preview.all_lengths(max_length)


def doctor(home: str | None = None, json: bool = False) -> int:
    """Prints what this machine has, what is missing and how to get it. Returns 0 if it could look."""
    with bad_input() as failure:
        machine = this_machine(Home.find(home).path)
        findings = diagnose(machine)
        if json:
            print_json(doctors_report(machine, findings))
        else:
            out.print(
                table(
                    ("", "", ""),
                    [(each.what, each.found, each.fix and f"→ {each.fix}") for each in findings],
                )
            )
        return 0
    return failure.code


COMMANDS: Mapping[str, Callable[..., int]] = {
    "train": train,
    "estimate": estimate,
    "check": check,
    "runs": manage_runs,
    "doctor": doctor,
}


def _fields(job_file: str | None, flags: Mapping[str, str]) -> dict[str, object]:
    """Field values of a job file, overridden by the flags that were given. Raises SpecError."""
    given = {name.removeprefix("field_"): value for name, value in flags.items()}
    if job_file is None:
        return dict(given)
    try:
        fields = json.loads(Path(job_file).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise SpecError(
            Problem("job file", f"{job_file}: {error.strerror}", "give the path of a job file")
        ) from None
    except (ValueError, RecursionError) as error:
        raise SpecError(
            Problem("job file", f"{job_file} is not JSON: {error}", "correct it")
        ) from None
    if not isinstance(fields, dict):
        raise SpecError(
            Problem("job file", f"{job_file} holds no object", "give a JSON object of job fields")
        )
    return fields | given


def _taken_in(home: Home, fields: Mapping[str, object]) -> dict[str, object]:
    """The fields whose data is a table or stands on the Hub, with the files of JSON lines that they become."""
    asked = {name: str(fields[name]) for name in ("dataset", "eval_dataset") if fields.get(name)}
    return {
        name: str(_take_in(home, source))
        for name, source in asked.items()
        if must_be_imported(source)
    }


def _take_in(home: Home, source: str) -> Path:
    print(f"Importing {source} ...", file=sys.stderr)
    path = source if is_hub_dataset(source) else str(dataset_path(source))
    taken = import_dataset(path, home.new_upload_folder())
    print(
        " ".join((*taken.actions, f"{counted(taken.rows, 'row')} in {taken.path}")), file=sys.stderr
    )
    return taken.path


def _tell_choices(resolved: ResolvedJob) -> None:
    """What the profile chose, and why."""
    for choice in resolved.plan.choices:
        out.print(f"{choice.field} = {choice.value}: {choice.reason}")


def _require_sound_data(resolved: ResolvedJob) -> None:
    """Raises SpecError with the first broken lines of the data."""
    for field, path in resolved.files:
        report = dataset.check_file(path, resolved.job.stage)
        if not report.is_usable:
            found = (f"{path.name}, {problem}" for problem in report.problems[:10])
            raise SpecError(*(Problem(field, problem, "correct the file") for problem in found))


def _measure(home: Home, resolved: ResolvedJob) -> RowStatistics | None:
    """How long the rows are. Raises SpecError if they cannot be trained on, or more answers are cut off than the job
    allows.

    Rows that cannot be measured, such as for a model that is not on this machine yet, are let pass, and that is said.
    """
    job, deadline = resolved.job, time.monotonic() + SECONDS_TO_MEASURE
    path, location = resolved.datasets["dataset"], resolved.model.location
    seen_by, cache = (location, job.revision, job.assistant_only_loss), home.path / "lengths"
    rows = Preview(
        path, *seen_by, stage=job.stage, cache=cache, write_rows=runs.writer_of_rows(resolved)
    )
    try:
        with out.status("Measuring the rows"), rows as preview:
            preview.all_lengths(job.max_length, is_cancelled=lambda: time.monotonic() > deadline)
            lengths = preview.measured()
    except PreviewError as error:
        print(f"The rows are not measured: {error}", file=sys.stderr)
        return None
    if problems := dataset.refusals(lengths, job):
        raise SpecError(*problems)
    return resolved.row_statistics(lengths.at(job.max_length)) if lengths.readable else None
