"""Let lm-evaluation-harness, which is no part of Tailor, ask a run: before and after its training.

Runs it as a program of its own, on the device of the run.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from core.job import Problem, SpecError
from core.runs import launch
from core.runs.checks import lm_tasks
from core.runs.queue import Reservation, reserved
from core.runs.results import checking
from core.runs.run import Run
from core.training.contract.methods import METHODS

PACKAGE = "lm_eval"
PROGRAM = (sys.executable, "-m", PACKAGE)
NO_SCORES = ("_stderr", "sample_len")
"""Parts of the names of numbers that say nothing about the answers."""
SHOWN_CHARACTERS = 300


@dataclass(frozen=True)
class LmScore:
    """One metric of one task."""

    task: str
    metric: str
    before: float | None
    after: float


def require_installed() -> None:
    """Raise SpecError unless lm-evaluation-harness can be imported."""
    if find_spec(PACKAGE) is None:
        problem = "lm-evaluation-harness is not installed"
        fix = f"install it with {sys.executable} -m pip install lm_eval; --suite needs no package"
        raise SpecError(Problem("--lm-eval", problem, fix))


def evaluate(
    run: Run,
    checkpoint: int | None,
    tasks: Sequence[str],
    program: Sequence[str] = PROGRAM,
) -> tuple[tuple[LmScore, ...], int]:
    """Return (the scores of tasks, the tests of suites that no task can hold).

    A task is named as a suite of the run, or as a task of the harness. Raises SpecError if the
    program fails, or if a run or a task uses the device, and OSError.
    """
    weights = checking.weights_of(run, checkpoint)
    own = [name for name in tasks if name in checking.suites_of(run)]
    with tempfile.TemporaryDirectory(prefix="tailor-lm-eval-") as place:
        folder = Path(place)
        written: Mapping[str, tuple[str, ...]] = {}
        left_out = 0
        if own:
            written, left_out = lm_tasks.named_tasks(checking.find_suites(run, own), folder)
        asked: list[str] = []
        for name in tasks:
            asked += written.get(name, (name,))
        found = []
        with reserved(run.home, run.job.device, "check", f"the check of {run.name}") as held:
            for side, arguments in _sides(run, weights).items():
                command = [*program, "--model", "hf", "--model_args", arguments]
                command += ["--tasks", ",".join(asked), "--include_path", str(folder)]
                command += ["--output_path", str(folder / side), "--apply_chat_template"]
                found.append(_results(folder / side, *_run(command, folder, held)))
    return _scores(*found), left_out


def _run(command: Sequence[str], folder: Path, held: Reservation) -> tuple[str, int]:
    """Run the program to its end on the device that is held. Return (what it printed, its code)."""
    with subprocess.Popen(
        command,
        cwd=folder,
        env=launch.environment(held.device),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        held.attach(process.pid)
        try:
            return process.communicate()[0], process.returncode
        except BaseException:
            process.kill()
            raise


def _sides(run: Run, weights: Path) -> Mapping[str, str]:
    """Return the arguments of the model before and after the training.

    Raises SpecError for a path with a comma, behind which the harness would read another argument.
    """
    job = run.job
    for path in (job.model, str(weights)):
        if "," in path:
            fix = "move it to a folder without commas in its path"
            raise SpecError(Problem("--lm-eval", f"{path} cannot be named to the harness", fix))
    base = [f"pretrained={job.model}"]
    if not Path(job.model).is_dir():
        base.append(f"revision={job.revision}")
    bits = METHODS[job.method].base_bits
    if bits in (4, 8):
        base.append(f"load_in_{bits}bit=True")
    after = [*base, f"peft={weights}"] if job.trains_adapter else [f"pretrained={weights}"]
    return {"before": ",".join(base), "after": ",".join(after)}


def _results(folder: Path, said: str, code: int) -> Mapping[str, Mapping[str, object]]:
    """Return task -> metric -> value of the newest results. Raises SpecError if there are none."""
    for path in sorted(folder.rglob("results_*.json"), reverse=True):
        with suppress(OSError, ValueError, RecursionError, KeyError, TypeError):
            results: Mapping[str, Mapping[str, object]] = json.loads(path.read_text())["results"]
            return results
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    reason = (lines or [f"it ended with code {code}"])[-1][:SHOWN_CHARACTERS]
    fix = "see whether lm_eval knows these tasks and can load this model"
    raise SpecError(Problem("--lm-eval", f"lm-evaluation-harness gave no results: {reason}", fix))


def _scores(
    before: Mapping[str, Mapping[str, object]], after: Mapping[str, Mapping[str, object]]
) -> tuple[LmScore, ...]:
    scores = []
    for task, metrics in after.items():
        for name, value in metrics.items():
            is_score = not any(part in name for part in NO_SCORES)
            if not is_score or not isinstance(value, int | float):
                continue
            earlier = before.get(task, {}).get(name)
            known = float(earlier) if isinstance(earlier, int | float) else None
            scores.append(LmScore(task, name.partition(",")[0], known, float(value)))
    return tuple(scores)
