"""Commands of `python app.py`: read flags and job files, call core, print. Never imports Gradio."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

from core import runs
from core.device import doctor as machine_doctor
from core.device import this_machine
from core.job import SpecError
from core.memory import MemoryEstimate
from core.memory.trace_check import TraceResult, estimate_by_tracing, trace_peak_memory
from core.models import demo_fields
from core.resolve import ResolvedJob, estimate_to_compare, request_to_trace, resolve
from core.runs import Home, queue
from core.runs.past_runs import forecast, past_runs
from core.training.contract.stages import DEFAULT_STAGE
from core.wording import (
    TRACED_HEADS,
    fix_label,
    memory,
    memory_parts,
    sentences_of_several_devices,
    speed_sentence,
    trace_sentence,
    trace_verdict,
    traced_rows,
    verdict_sentence,
)
from ui.terminal.chat import chat
from ui.terminal.check import check
from ui.terminal.check_model import check_model
from ui.terminal.compare import compare
from ui.terminal.export import export
from ui.terminal.follow import start_and_follow
from ui.terminal.job_fields import fields_of_job, find_data, require_choice, row_statistics
from ui.terminal.models import show_models
from ui.terminal.placing import placement_of, split_flags
from ui.terminal.preview import preview
from ui.terminal.printing import out, print_json, report_errors, say, table
from ui.terminal.runs import manage_runs
from ui.terminal.soundness import require_sound_files


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
    detach: bool = False,
    **flags: str,
) -> int:
    """Train in the foreground and return the exit code. Raises TailorError."""
    place = Home.find(home)
    where, fields = split_flags(flags)
    placement = placement_of(where)
    job_fields = fields_of_job(job, fields)
    if demo:
        stage = str(job_fields.get("stage", DEFAULT_STAGE))
        job_fields = {**demo_fields(stage), **job_fields}
    job_fields |= find_data(place, job_fields, columns, split_text)
    resolved = resolve(job_fields)
    if not demo:
        require_choice(job_fields)
    resolved.require_trainable()
    sound = require_sound_files(resolved)
    if sound.refusals:
        raise SpecError(*sound.refusals)
    if placement:
        placement.require_devices(job_fields.get("num_devices", 1))
        queue.require_seen(place, placement)
    rows = row_statistics(place, resolved)
    resolved = resolve(job_fields, rows=rows, past=partial(past_runs, place))
    run = runs.create(place, resolved, forecast(place, resolved), sound.hashes)
    _print_choices(resolved)
    return start_and_follow(place, run, placement, detach=detach)


def estimate(
    *,
    home: str | None = None,
    job: str | None = None,
    json: bool = False,
    exact: bool = False,
    measure: bool = False,
    **fields: str,
) -> int:
    """Print the memory and speed of a job; `measure` counts its rows as long as they are, `exact`
    traces a step beside. Raises TailorError."""
    place = Home.find(home)
    job_fields = fields_of_job(job, fields)
    if measure:
        job_fields |= find_data(place, job_fields, columns="", split_text="")
    resolved = resolve(job_fields, past=partial(past_runs, place))
    if measure:
        rows = row_statistics(place, resolved, say)
        resolved = resolve(job_fields, rows=rows, past=partial(past_runs, place))
    found = _estimate_memory(resolved, home)
    if json:
        printed = (resolved.forecast() or {"fixes": [], "speed": {}}) | found.to_json()
        if exact:
            printed["traced"] = asdict(_trace(resolved, home))
        print_json(printed)
        return 0
    _print_estimate(resolved, found)
    if exact:
        traced = _trace(resolved, home)
        out.print(trace_sentence(traced, resolved.job.num_devices), style="bold")
        if resolved.model.shape:
            compared = estimate_to_compare(resolved)
            out.print(table(("", *TRACED_HEADS), traced_rows(compared, traced)))
            out.print(trace_verdict(compared, traced))
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
    "check-model": check_model,
    "preview": preview,
    "models": show_models,
    "compare": compare,
    "runs": manage_runs,
    "export": export,
    "chat": chat,
    "doctor": doctor,
}


def _takes_flag(command: str, field: str) -> bool:
    """Return whether a command has the flag of a job field."""
    parameters = inspect.signature(COMMANDS[command]).parameters
    return field in parameters or not {"fields", "flags"}.isdisjoint(parameters)


def _estimate_memory(resolved: ResolvedJob, home: str | None) -> MemoryEstimate:
    """Estimate the memory; trace one step for an unknown architecture. Raises TailorError."""
    if resolved.model.shape:
        return resolved.estimate()
    say("Tailor does not know this architecture, so it traces one training step.")
    return estimate_by_tracing(request_to_trace(resolved), _traces(home))


def _trace(resolved: ResolvedJob, home: str | None) -> TraceResult:
    """Trace one training step of a job, on the first of its devices. Raises TraceError."""
    return trace_peak_memory(request_to_trace(resolved), _traces(home))


def _traces(home: str | None) -> Path:
    return Home.find(home).path / "traces"


def _print_estimate(resolved: ResolvedJob, estimate: MemoryEstimate) -> None:
    title = f"{resolved.model.title} on {resolved.gpu.name}"
    num_devices = resolved.job.num_devices
    out.print(f"{title}: {verdict_sentence(estimate, num_devices)}", style="bold")
    for sentence in sentences_of_several_devices(resolved.sharing(), estimate):
        out.print(sentence)
    rows = [(each.title, memory(each.bytes), each.note) for each in memory_parts(estimate)]
    out.print(table(("part", "memory", ""), rows))
    if speed := resolved.speed():
        if_full = "" if resolved.rows else ", if every row fills max_length; --measure reads them"
        out.print(f"{speed_sentence(speed)}{if_full}")
    _print_choices(resolved)
    for fix in resolved.fixes():
        out.print(f"{fix_label(fix)}\n  {fix.why}")


def _print_choices(resolved: ResolvedJob) -> None:
    for choice in resolved.plan.choices:
        out.print(f"{choice.field} = {choice.value}: {choice.reason}")
