"""Check an export: let it answer the suites that the trained model answers, and keep in its folder
what was lost on the way.

    exports/<name>/checks/SUITE.json   as in a run; its `before` is the model as trained
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from core.after_training.export.records import (
    CHECKS,
    Export,
    Manifest,
    exports_folder,
    list_exports,
)
from core.after_training.export.tools import TO_INSTALL, server_folder
from core.device.child import Child, Limits, ignore_progress
from core.job import Problem, SpecError
from core.job.places import is_there
from core.runs import Home, Run, launch
from core.runs.checks import SuiteResult
from core.runs.queue import reserved
from core.runs.results import checking
from core.training.contract.checks.suite import Suite
from core.training.contract.checks.suite_files import to_lines
from core.training.contract.files import write_json

LOCK = ".check.lock"
TEMPLATES = ("chat_template.jinja", "chat_template.json")
OnProgress = Callable[[float], None]
Never = Callable[[], bool]
Answers = Mapping[str, Sequence[str]]
"""Name of a suite -> the answers to its tests."""


@dataclass(frozen=True)
class ExportCheck:
    """Results of the check of an export."""

    run_id: str
    export: str
    """Its name."""
    suites: tuple[SuiteResult, ...]
    """`before` is the model as trained, `after` the export."""

    def to_json(self) -> dict[str, object]:
        """Return it as `check-model RUN@EXPORT --json` prints it."""
        suites = [each.to_json() for each in self.suites]
        return {"run": self.run_id, "export": self.export, "suites": suites}


def can_be_checked(export: Export) -> bool:
    """Return True for a whole model that answers: a GGUF file, or a folder for transformers."""
    names = {each.name for each in export.manifest.files}
    is_folder = "config.json" in names and "adapter_config.json" not in names
    if export.gives_scores:
        return False
    return export.gguf is not None or is_folder


def names_export(reference: str) -> bool:
    """Return True if a reference is RUN@EXPORT, not a run, a folder or RUN@STEP."""
    _name, sign, place = reference.rpartition("@")
    return bool(sign) and not place.isdecimal() and not is_there(Path(reference) / "job.json")


def find_exported(home: Home, reference: str) -> tuple[Run, Export]:
    """Return the run and the export of RUN@EXPORT. Raises RunNotFound, SpecError."""
    name, _sign, export = reference.rpartition("@")
    run = checking.find_run(home, name)
    return run, find_export(run, export)


def find_export(run: Run, name: str) -> Export:
    """Return an export that can be checked. Raises SpecError."""
    found = {each.name: each for each in list_exports(run) if can_be_checked(each)}
    if name in found:
        return found[name]
    known = ", ".join(f"{run.id}@{each}" for each in found)
    fix = f"choose {known}" if known else f"run `python app.py export {run.id} --to gguf` first"
    raise SpecError(Problem("export", f"{run.id} has no export {name[:100]} to check", fix))


def check_export(
    run: Run,
    export: Export,
    suites: Sequence[Suite],
    *,
    on_progress: OnProgress = ignore_progress,
    is_cancelled: Never | None = None,
) -> ExportCheck:
    """Let an export answer suites, keep the results in its folder, and return them.

    Suites that the trained model has not answered are asked of it first. Raises SpecError if there
    is nothing to ask or ask with, or if another check is under way; ChildError and OSError.
    """
    tools = server_folder(run.home)
    if export.gguf and tools is None:
        problem = "llama.cpp, which answers, is not installed"
        raise SpecError(Problem("export", problem, TO_INSTALL))
    with _only_check(run):
        trained = _as_trained(run, suites, lambda share: on_progress(share / 2), is_cancelled)
        request = {
            "job": run.job.model_dump(),
            "export": {
                "folder": str(export.folder),
                "files": dict(export.weights),
                "tools": str(tools or ""),
                "has_template": _has_template(run.folder / checking.RESULT),
            },
            "suites": [{"name": suite.name, "lines": to_lines(suite)} for suite in suites],
        }
        with _child(run, export) as child:
            answers = child.ask(
                request,
                checking.MAX_SECONDS,
                on_progress=lambda share: on_progress(0.5 + share / 2),
                is_cancelled=is_cancelled,
            )
        return _keep(run, export, suites, trained, answers["answers"])


@contextmanager
def _only_check(run: Run) -> Iterator[None]:
    """Let one check of the exports of a run be under way. Raises SpecError."""
    lock = FileLock(exports_folder(run) / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        problem = f"another check of the exports of {run.id} is under way"
        raise SpecError(Problem("export", problem, "wait for its end, or stop it")) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _child(run: Run, export: Export) -> Iterator[Child]:
    """Start the program that answers. A GGUF file is answered with on the processor, a folder on
    the device of the run."""
    if export.gguf:
        environment = launch.environment(launch.devices_of(run)[0])
        with Child(checking.MODULE, Limits(), environment=environment) as child:
            yield child
        return
    title = f"the check of {export.name} of {run.name}"
    with reserved(run.home, run.job.device, "check", title) as reservation:
        environment = launch.environment(reservation.device)
        with Child(checking.MODULE, Limits(), environment=environment) as child:
            reservation.attach(child.pid)
            yield child


def _as_trained(
    run: Run, suites: Sequence[Suite], on_progress: OnProgress, is_cancelled: Never | None
) -> Answers:
    """Return the answers of the run's result: those that are kept, else it is asked."""
    step = run.result_step or run.step
    known = {}
    for result in checking.results_of(run):
        if result.step == step:
            known[result.sha256] = result
    missing = [suite for suite in suites if suite.sha256 not in known]
    if missing:
        report = checking.check(run, missing, on_progress=on_progress, is_cancelled=is_cancelled)
        known |= {result.sha256: result for result in report.suites}
    found = {}
    for suite in suites:
        found[suite.name] = [each.after for each in known[suite.sha256].outcomes]
    return found


def _keep(
    run: Run, export: Export, suites: Sequence[Suite], trained: Answers, exported: Answers
) -> ExportCheck:
    """Judge the answers and write the results beside the export. Raises SpecError, OSError."""
    try:
        is_same = Manifest.read(export.folder).files == export.manifest.files
    except ValueError:
        is_same = False
    if not is_same:
        problem = f"{export.name} was deleted or made again while it was checked"
        raise SpecError(Problem("export", problem, "check what is there now"))
    step = run.result_step or run.step
    folder = export.folder / CHECKS
    folder.mkdir(exist_ok=True)
    results = []
    for suite in suites:
        name = suite.name
        result = SuiteResult.of_answers(suite, step, trained[name], exported[name])
        write_json(folder / f"{name}.json", result.to_file())
        results.append(result)
    os.utime(run.folder)  # so that lists read the run again
    return ExportCheck(run.id, export.name, tuple(results))


def _has_template(result: Path) -> bool:
    """Return True if a result has a chat template."""
    if any((result / name).is_file() for name in TEMPLATES):
        return True
    settings = result / "tokenizer_config.json"
    return settings.is_file() and '"chat_template"' in settings.read_text("utf-8", "replace")
