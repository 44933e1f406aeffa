"""The command line's face: reads flags and job files, calls core, prints. Never imports gradio."""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from core import dataset, launch, runs
from core.device import this_machine
from core.doctor import diagnose
from core.doctor import to_json as doctors_report
from core.job import Problem, SpecError
from core.methods import STAGES
from core.models import ModelNotFound, find_model
from core.preview import Lengths, Preview, PreviewError
from core.resolve import ResolvedJob, dataset_path, recipe_fields, resolve
from core.runs import Home, Run, RunNotFound
from ui.words import fix_label, gib, memory_rows, speed_sentence, state_sentence, verdict_sentence

EXIT_CODES: Mapping[runs.State, int] = {"finished": 0, "failed": 1, "interrupted": 1, "stopped": 130}
out = Console(highlight=False, soft_wrap=True, markup=False)


def train(home: str | None = None, demo: bool = False, job: str | None = None, **fields: str) -> int:
    """Trains in the foreground: a detached worker trains, this process watches. Returns the exit code."""
    with _bad_input() as failure:
        place = Home.find(home)
        resolved = resolve((recipe_fields("demo") if demo else {}) | _fields(job, fields))
        _require_sound_data(resolved)
        run = runs.create(place, resolved, resolved.forecast())
        launch.start(place, run)
        out.print(f"{run.id}\n{run.folder}", style="dim")
        return _follow(place, run)
    return failure.code


def estimate(home: str | None = None, job: str | None = None, json: bool = False, **fields: str) -> int:
    """Prints what a job will take. Returns the exit code."""
    with _bad_input() as failure:
        resolved = resolve(_fields(job, fields))
        found = resolved.estimate()
        if json:
            _print_json(resolved.forecast())
        else:
            out.print(f"{resolved.model.title} on {resolved.gpu.name}: {verdict_sentence(found)}", style="bold")
            out.print(_table(("", "GiB", ""), [(each.name, gib(each.bytes), each.note) for each in found.components]))
            if speed := resolved.speed():
                out.print(f"{speed_sentence(speed)}, if every row fills max_length")
            for fix in resolved.fixes():
                out.print(f"{fix_label(fix)}\n  {fix.why}")
        return 0
    return failure.code


def check(
    file: str,
    home: str | None = None,
    stage: str = "sft",
    model: str | None = None,
    max_length: str = "2048",
    json: bool = False,
) -> int:
    """Prints what a dataset holds and, for a model, how long its rows are. Returns 0 if it is usable, 2 if not."""
    with _bad_input() as failure:
        if stage not in STAGES:
            raise SpecError((Problem("stage", f"{stage!r} is not one of {', '.join(STAGES)}", "choose one of these"),))
        path = dataset_path(file)
        if not path.is_file():
            raise SpecError((Problem("file", f"there is no file {file}", "give the path of a JSONL file"),))
        report = dataset.check_in_child(path, stage)
        lengths = _lengths(path, model, max_length) if model and report.is_usable else None
        if json:
            _print_json(report.to_json() | (lengths.to_json() if lengths else {}))
        else:
            out.print(report.summary(), style="bold")
            if lengths:
                lost = f"{lengths.truncated_rows:,} rows are cut, {lengths.fully_masked_rows:,} have no answer left"
                out.print(f"{lengths.p50:,} tokens at the median, {lengths.p95:,} at 95 %, {lengths.max:,} at most")
                out.print(f"With max_length {max_length}, {lost}")
            for problem in report.problems:
                print(problem, file=sys.stderr)
        return 0 if report.is_usable else 2
    return failure.code


def _lengths(path: Path, model: str, max_length: str) -> Lengths:
    """How long the rows are to a model. Raises SpecError."""
    try:
        limit, location = int(max_length), find_model(model, "main").location
        with TemporaryDirectory() as folder, Preview(Path(folder) / "rows.jsonl", location) as preview:
            dataset.write_lines(path, preview.dataset)
            return preview.all_lengths(limit)
    except ModelNotFound as error:
        raise SpecError((Problem("model", error.problem, error.fix),)) from None
    except PreviewError as error:
        raise SpecError((Problem("model", str(error), "choose a model with a tokenizer"),)) from None
    except ValueError:
        raise SpecError((Problem("max_length", f"{max_length!r} is not a number", "give whole tokens"),)) from None


def manage_runs(home: str | None = None, action: str = "list", id: str | None = None, json: bool = False) -> int:
    """Lists, shows, stops, resumes or deletes runs. Returns the exit code."""
    with _bad_input() as failure:
        place = Home.find(home)
        if action == "list":
            return _list(place, json)
        if id is None:
            raise SpecError(
                (Problem("ID", "is missing", f"`python app.py runs {action} ID`; `runs list` has the IDs"),)
            )
        return RUN_ACTIONS[action](place, runs.read(place, id), json)
    return failure.code


def doctor(home: str | None = None, json: bool = False) -> int:
    """Prints what this machine has, what is missing and how to get it. Returns 0 if it could look."""
    with _bad_input() as failure:
        machine = this_machine(Home.find(home).path)
        findings = diagnose(machine)
        if json:
            _print_json(doctors_report(machine, findings))
        else:
            out.print(
                _table(("", "", ""), [(each.what, each.found, each.fix and f"→ {each.fix}") for each in findings])
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


def _list(home: Home, as_json: bool) -> int:
    found = runs.list_runs(home)
    if as_json:
        _print_json([run.to_json() for run in found])
    else:
        rows = [(run.id, run.state, f"{run.step}/{run.max_steps}", run.error) for run in found]
        out.print(_table(("run", "state", "step", ""), rows) if rows else "No runs yet: `make demo` makes one.")
    return 0


def _show(home: Home, run: Run, as_json: bool) -> int:
    if as_json:
        _print_json(run.to_json() | {"job": run.job.model_dump(), "status": dict(run.status)})
    else:
        out.print(f"{run.id}: {state_sentence(run)}", style="bold")
        _print_result(run)
    return 0


def _stop(home: Home, run: Run, as_json: bool) -> int:
    launch.request_stop(run)
    run = launch.wait(home, run.id, launch.SECONDS_TO_TERMINATE)
    return _show(home, run, as_json)


def _resume(home: Home, run: Run, as_json: bool) -> int:
    if run.is_active or run.state == "finished":
        raise SpecError((Problem("ID", f"{run.id} is {run.state}", "only a run that ended early can be resumed"),))
    launch.start(home, run)
    return _follow(home, run)


def _delete(home: Home, run: Run, as_json: bool) -> int:
    runs.delete(home, run.id)
    out.print(f"Deleted {run.id}.")
    return 0


RUN_ACTIONS: Mapping[str, Callable[[Home, Run, bool], int]] = {
    "show": _show,
    "stop": _stop,
    "resume": _resume,
    "delete": _delete,
}


def _follow(home: Home, run: Run) -> int:
    """Shows a run until it ends. Ctrl-C stops it with a checkpoint; a second one leaves it to end by itself."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=out) as progress, _stop_on_interrupt(run):
        bar = progress.add_task("starting", total=None, note="")
        printed = 0
        while run.is_active:
            run = launch.wait(home, run.id, 0.2)
            printed = _report_rows(run, printed)
            total, loss = run.max_steps or None, runs.last_metrics(run.folder).get("loss")
            note = f"loss {loss:.4f}" if loss is not None else ""
            word = run.status.get("phase") if run.state == "running" else run.state
            progress.update(bar, description=str(word), completed=run.step, total=total, note=note)
    out.print(f"{state_sentence(run)}", style="bold")
    _print_result(run)
    return EXIT_CODES[run.state]


def _report_rows(run: Run, printed: int) -> int:
    """Without a terminal there is no bar to watch, so each logged row is a line."""
    if out.is_terminal:
        return printed
    rows = runs.metrics(run.folder)
    for row in rows[printed:]:
        words = (f"{name} {row[name]:.4g}" for name in ("loss", "eval_loss", "learning_rate") if name in row)
        out.print(f"step {row.get('step')}/{run.max_steps}  {'  '.join(words)}")
    return len(rows)


@contextmanager
def _stop_on_interrupt(run: Run) -> Iterator[None]:
    def stop(_signal: int, _frame: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        out.print("Stopping after this step, with a checkpoint. Ctrl-C again to leave it alone.")
        launch.request_stop(run)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _print_result(run: Run) -> None:
    if rows := memory_rows(run):
        out.print(_table(("phase", "predicted GiB", "measured GiB", ""), rows))
    for sample in runs.samples(run.folder):
        out.print(f"step {sample['step']}: {sample['prompt']}  →  {sample['answer']}")
    if run.state == "finished":
        out.print(f"Result: {run.folder / 'output'}")
    elif run.state in ("stopped", "interrupted", "failed") and runs.has_checkpoint(run.folder):
        out.print(f"Go on from its checkpoint with: python app.py runs resume {run.id}")
    if run.state == "failed":
        out.print(f"Log: {run.folder / 'log.txt'}")


def _fields(job_file: str | None, flags: Mapping[str, str]) -> dict[str, object]:
    """Field values of a job file, overridden by the flags that were given. Raises SpecError."""
    given = {name.removeprefix("field_"): value for name, value in flags.items()}
    if job_file is None:
        return dict(given)
    try:
        fields = json.loads(Path(job_file).read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(
            (Problem("job file", f"{job_file}: {error.strerror}", "give the path of a job file"),)
        ) from None
    except ValueError as error:
        raise SpecError((Problem("job file", f"{job_file} is not JSON: {error}", "correct it"),)) from None
    if not isinstance(fields, dict):
        raise SpecError((Problem("job file", f"{job_file} holds no object", "give a JSON object of job fields"),))
    return fields | given


def _require_sound_data(resolved: ResolvedJob) -> None:
    """Raises SpecError with the first broken lines of the data."""
    for field, path in resolved.datasets.items():
        report = dataset.check(path, resolved.job.stage)
        if not report.is_usable:
            raise SpecError(tuple(Problem(field, str(problem), "correct the file") for problem in report.problems[:10]))


class _Failure:
    code = 2


@contextmanager
def _bad_input() -> Iterator[_Failure]:
    """Prints one clear line per problem on stderr instead of a traceback."""
    failure = _Failure()
    try:
        yield failure
    except SpecError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
    except RunNotFound as error:
        print(error.args[0], file=sys.stderr)
    except BrokenPipeError:  # `app.py runs | head` has seen enough
        os._exit(0)
    except OSError as error:
        print(f"{error.filename or 'disk'}: {error.strerror}", file=sys.stderr)
        failure.code = 1


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def _table(titles: tuple[str, ...], rows: Any) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=any(titles))
    for title in titles:
        table.add_column(title, justify="right" if "GiB" in title else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(str, row))
    return table
