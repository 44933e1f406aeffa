"""Commands of `python app.py`: read flags and job files, call core, print. Never imports Gradio."""

import inspect
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from core import runs
from core.dataset.intake import must_be_imported
from core.device import doctor as machine_doctor
from core.device import this_machine
from core.job import Problem, SpecError
from core.memory import MemoryEstimate
from core.memory.trace_check import TraceRequest, estimate_by_tracing
from core.models import demo_fields
from core.resolve import ResolvedJob, resolve
from core.runs import Home
from core.runs.past_runs import forecast, refined
from core.speed import RowStatistics
from core.training.contract.stages import DEFAULT_STAGE
from core.wording import fix_label, memory, memory_parts, speed_sentence, verdict_sentence
from ui.terminal.chat import chat
from ui.terminal.check import check
from ui.terminal.data_files import DataFinder
from ui.terminal.export import export
from ui.terminal.follow import start_and_follow
from ui.terminal.models import show_models
from ui.terminal.preview import preview
from ui.terminal.printing import out, print_json, report_errors, say, table
from ui.terminal.runs import manage_runs
from ui.terminal.soundness import measure_rows, require_sound_files

SECONDS_TO_MEASURE = 60
"""Time for measuring rows before a run starts. Of a larger file, only the first rows count."""


def run(command: str, **flags: object) -> int:
    """Run one of COMMANDS and return the exit code. Print errors as one line for each problem."""
    return report_errors(partial(COMMANDS[command], **flags), partial(_takes_flag, command))


def train(
    *,
    home: str | None = None,
    demo: bool = False,
    job: str | None = None,
    columns: str = "",
    split_text: str = "",
    **fields: str,
) -> int:
    """Train in the foreground and return the exit code. Raises TailorError."""
    place = Home.find(home)
    job_fields = _job_fields(job, fields)
    if demo:
        stage = str(job_fields.get("stage", DEFAULT_STAGE))
        job_fields = {**demo_fields(stage), **job_fields}
    job_fields |= _find_data(place, job_fields, columns, split_text)
    resolved = resolve(job_fields)
    if not demo:
        _require_choice(job_fields)
    resolved.require_trainable()
    sound = require_sound_files(resolved)
    if sound.refusals:
        raise SpecError(*sound.refusals)
    resolved = resolve(job_fields, rows=_statistics(place, resolved))
    _print_choices(resolved)
    run = runs.create(place, resolved, forecast(place, resolved), sound.hashes)
    return start_and_follow(place, run)


def estimate(
    *, home: str | None = None, job: str | None = None, json: bool = False, **fields: str
) -> int:
    """Print the memory and speed of a job. Raises TailorError."""
    resolved = resolve(_job_fields(job, fields))
    found = _estimate_memory(resolved, home)
    if json:
        more = resolved.forecast() or {"fixes": [], "speed": {}}
        print_json(more | found.to_json())
    else:
        _print_estimate(resolved, found)
    return 0


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
    "preview": preview,
    "models": show_models,
    "runs": manage_runs,
    "export": export,
    "chat": chat,
    "doctor": doctor,
}


def _require_choice(job_fields: Mapping[str, object]) -> None:
    """Refuse a job that names neither model nor data. Raises SpecError."""
    if not any(job_fields.get(name) for name in ("model", "dataset", "mix", "adapter")):
        problem = "is missing, and so is the model: nothing says what to train"
        fix = "give --model and --dataset, or --demo to try the demo"
        raise SpecError(Problem("dataset", problem, fix))


def _takes_flag(command: str, field: str) -> bool:
    """Return whether a command has the flag of a job field."""
    parameters = inspect.signature(COMMANDS[command]).parameters
    return field in parameters or "fields" in parameters


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


def _find_data(
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


def _statistics(home: Home, resolved: ResolvedJob) -> RowStatistics | None:
    """Return what is known of the rows; None if they cannot be measured. Raises SpecError."""
    measured = measure_rows(home, resolved, SECONDS_TO_MEASURE)
    if measured is None:
        return None
    for note in measured.notes:
        out.print(note)
    if measured.problems:
        raise SpecError(*measured.problems)
    if not measured.lengths.readable:
        return None
    return resolved.row_statistics(measured.lengths.at(resolved.job.max_length))


def _estimate_memory(resolved: ResolvedJob, home: str | None) -> MemoryEstimate:
    """Estimate the memory; trace one step for an unknown architecture. Raises TailorError."""
    if resolved.model.shape:
        is_local = resolved.job.gpu == "local"
        return refined(Home.find(home), resolved) if is_local else resolved.estimate()
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
