"""Check a run: let its result and the model before answer suites, and keep what was lost and
gained in its folder.

    runs/<id>/checks/  SUITE.json       result of a suite
                       perplexity.json  perplexity on held-out rows
                       suites/          suites that were made for this run
                       step-40/         the same results of the checkpoint of step 40
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from core.device.child import Child, Limits, ignore_progress
from core.job import ChildError, Problem, SpecError
from core.job.places import is_there
from core.runs import launch
from core.runs.checks import (
    PerplexityResult,
    SuiteResult,
    find_suite,
    folders_of,
    held_out_suite,
    names_in,
)
from core.runs.files import read_bytes, read_json
from core.runs.home import Home
from core.runs.listing import list_runs
from core.runs.queue import reserved
from core.runs.run import Run, read
from core.runs.suites import has_demo_rows, is_demo, require_distinct_names, usual_in
from core.training.contract.checks.suite import Suite
from core.training.contract.checks.suite_files import to_lines
from core.training.contract.failures import TrainingError
from core.training.contract.files import write_json, write_text
from core.training.contract.row_reader import BadRow, read_row
from core.training.contract.stages import STAGES

MODULE = "core.workers.checks"
RESULT = "output"
LATEST = "latest"
MAX_SECONDS = 6 * 3600
"""Longest check."""
Never = Callable[[], bool]


@dataclass(frozen=True)
class CheckReport:
    """Results of a check."""

    run_id: str
    suites: tuple[SuiteResult, ...]
    perplexity: PerplexityResult
    cached: tuple[str, ...] = ()
    """Suites whose answers before the training were known from an earlier check."""
    checkpoint: int | None = None
    """Step of the checkpoint that was checked; None is the result."""

    def to_json(self) -> dict[str, object]:
        """Return the report as `check-model --json` prints it."""
        report: dict[str, object] = {
            "run": self.run_id,
            "suites": [each.to_json() for each in self.suites],
            "perplexity": self.perplexity.to_json(),
        }
        return report if self.checkpoint is None else {**report, "checkpoint": self.checkpoint}


def find_run(home: Home, reference: str) -> Run:
    """Return the run of an id, the unique beginning of one, the path of its folder, or `latest`.

    Raises RunNotFound, SpecError.
    """
    ids = [run.id for run in list_runs(home)]
    if reference == LATEST and ids:
        return read(home, ids[0])
    folder = Path(reference)
    if reference not in ids and is_there(folder / "job.json"):
        folder = folder.absolute()
        return read(Home(folder.parent.parent), folder.name)
    matches = [run_id for run_id in ids if run_id.startswith(reference)]
    if reference not in ids and len(matches) > 1:
        problem = f"{reference!r} begins the ids of {len(matches)} runs"
        raise SpecError(Problem("run", problem, "write more of it"))
    return read(home, matches[0] if matches else reference)


def find_checkpoint(home: Home, reference: str) -> tuple[Run, int | None]:
    """Return the run of RUN or RUN@STEP, and the step of its checkpoint; None is its result.

    Raises RunNotFound, SpecError for a step without a complete checkpoint.
    """
    name, sign, step = reference.rpartition("@")
    if not sign or is_there(Path(reference) / "job.json"):
        return find_run(home, reference), None
    run = find_run(home, name)
    steps = steps_of(run)
    if step not in map(str, steps):
        known = ", ".join(f"{name}@{each}" for each in steps)
        fix = f"choose {known}" if known else "check its result, or train with save_steps"
        raise SpecError(Problem("run", f"{run.id} has no checkpoint of step {step[:20]}", fix))
    return run, int(step)


def steps_of(run: Run) -> tuple[int, ...]:
    """Return the steps of the checkpoints that can be checked, the newest first."""
    complete = [each.step for each in run.checkpoints if each.is_complete]
    return tuple(reversed(complete))


def results_folder(run: Run, checkpoint: int | None = None) -> Path:
    """Return where the results of a checkpoint are kept; None is the result of the run."""
    folder = run.folder / "checks"
    return folder if checkpoint is None else folder / f"step-{checkpoint}"


def suite_folders(run: Run) -> tuple[Path, ...]:
    """Return the folders of the suites that a run can be checked with by name."""
    own = run.folder / "checks" / "suites"
    return folders_of(is_demo(run.job), own, has_demo_rows=has_demo_rows(run.job, run.folder))


def suites_of(run: Run) -> tuple[str, ...]:
    """Return the names of these suites, the usual ones first."""
    names = names_in(suite_folders(run))
    usual = usual_in(names)
    return (*usual, *(name for name in names if name not in usual))


def find_suites(run: Run, references: Iterable[str]) -> tuple[Suite, ...]:
    """Return suites by name or file; the usual ones if none are named. Raises SpecError."""
    named = tuple(references) or usual_in(suites_of(run))
    suites = tuple(find_suite(each, suite_folders(run)) for each in named)
    require_distinct_names(suites)
    return suites


def keep_suite(run: Run, suite: Suite) -> Path:
    """Write a suite that was made for a run into its folder. Raises SpecError, OSError."""
    folder = run.folder / "checks" / "suites"
    _make_folder(run, folder)
    write_text(folder / f"{suite.name}.jsonl", to_lines(suite))
    return folder / f"{suite.name}.jsonl"


def suite_of_held_out_rows(run: Run) -> Suite:
    """Return a suite of the rows that a run held out. Raises SpecError."""
    rows = []
    for line in read_bytes(run.folder / "data" / "eval.jsonl").splitlines():
        try:
            rows.append(read_row(line, run.job.stage))
        except (BadRow, TrainingError):
            continue
    return held_out_suite(rows)


def results_of(run: Run, checkpoint: int | None = None) -> tuple[SuiteResult, ...]:
    """Return the kept results, those of the usual suites first."""
    found = {}
    for path in sorted(results_folder(run, checkpoint).glob("*.json")):
        result = SuiteResult.from_json(read_json(path))
        if result:
            found[result.name] = result
    usual = usual_in(tuple(found))
    return tuple(found[name] for name in (*usual, *(name for name in found if name not in usual)))


def checked_steps(run: Run) -> tuple[int, ...]:
    """Return the steps whose checkpoints have been checked, the oldest first."""
    steps = []
    for folder in results_folder(run).glob("step-*"):
        step = folder.name.removeprefix("step-")
        if step.isdecimal() and results_of(run, int(step)):
            steps.append(int(step))
    return tuple(sorted(steps))


def perplexity_of(run: Run, checkpoint: int | None = None) -> PerplexityResult | None:
    """Return the kept perplexities."""
    path = results_folder(run, checkpoint) / "perplexity.json"
    return PerplexityResult.from_json(read_json(path))


def check(
    run: Run,
    suites: Sequence[Suite],
    *,
    checkpoint: int | None = None,
    on_progress: Callable[[float], None] = ignore_progress,
    is_cancelled: Never | None = None,
) -> CheckReport:
    """Check the result of a run or the checkpoint of a step, keep the results in its folder, and
    return them.

    Raises SpecError if there is nothing that writes, or if a run or another task uses its device,
    ChildError and OSError.
    """
    weights = weights_of(run, checkpoint)
    request = {
        "job": run.job.model_dump(),
        "weights": str(weights),
        "run": str(run.folder),
        "suites": [{"name": suite.name, "lines": to_lines(suite)} for suite in suites],
        "cache": str(run.home.path / "cache" / "checks"),
    }
    with reserved(run.home, run.job.device, "check", f"the check of {run.name}") as reservation:
        environment = launch.environment(reservation.device)
        with Child(MODULE, Limits(), environment=environment) as child:
            reservation.attach(child.pid)
            answers = child.ask(
                request, MAX_SECONDS, on_progress=on_progress, is_cancelled=is_cancelled
            )
    return _keep(run, suites, answers, checkpoint)


def weights_of(run: Run, checkpoint: int | None) -> Path:
    """Return the folder of what shall answer. Raises SpecError if there is none that can."""
    if STAGES[run.job.stage].head == "score":
        fix = "check a run that trains a model to write"
        raise SpecError(Problem("run", "a reward model writes no answers", fix))
    if checkpoint is not None:
        for each in run.checkpoints:
            if each.step == checkpoint and each.is_complete:
                return each.folder
        fix = "choose another checkpoint, or the result"
        raise SpecError(Problem("run", f"{run.id} has no checkpoint of step {checkpoint}", fix))
    if not (run.folder / RESULT).is_dir():
        fix = "let it train to its end, or resume it"
        if steps := steps_of(run):
            fix = f"check a checkpoint, such as {run.id}@{steps[0]}, or resume it"
        raise SpecError(Problem("run", f"{run.id} is {run.state} and has no result", fix))
    return run.folder / RESULT


def _keep(
    run: Run, suites: Sequence[Suite], answers: Mapping[str, Any], checkpoint: int | None
) -> CheckReport:
    """Judge the answers and write the results. Raises SpecError if the run is gone, OSError."""
    step = checkpoint if checkpoint is not None else run.result_step or run.step
    before, after = answers["before"], answers["after"]
    results = []
    folder = results_folder(run, checkpoint)
    _make_folder(run, folder)
    for suite in suites:
        result = SuiteResult.of_answers(suite, step, before[suite.name], after[suite.name])
        write_json(folder / f"{suite.name}.json", result.to_file())
        results.append(result)
    perplexity = PerplexityResult.from_json(answers["perplexity"]) or PerplexityResult()
    if perplexity.after is not None:
        write_json(folder / "perplexity.json", asdict(perplexity))
    os.utime(run.folder)  # so that lists read the run again
    run.home.touch()
    return CheckReport(run.id, tuple(results), perplexity, tuple(answers["cached"]), checkpoint)


def _make_folder(run: Run, folder: Path) -> None:
    """Create a folder inside that of a run. Raises SpecError if the run was deleted, OSError."""
    place = run.folder
    try:
        for name in folder.relative_to(run.folder).parts:
            place /= name
            place.mkdir(exist_ok=True)
    except FileNotFoundError:
        fix = "restore it from the trash, then check again"
        raise SpecError(Problem("run", f"{run.id} was deleted", fix)) from None


def died_sentence(error: ChildError) -> str:
    """Return what to tell the user of a check that gave no answer."""
    if error.cause == "refused":
        return str(error)
    if error.cause == "died":
        advice = "If memory ran out, end other programs first. Results of earlier checks stay."
        return f"The check gave no answers: {error.reason}. {advice}"
    if error.cause == "cancelled":
        return "The check was stopped."
    return f"The check {error.reason}."
