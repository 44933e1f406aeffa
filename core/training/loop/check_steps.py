"""Checks during a training: suites that the model at hand answers every few steps."""

import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..contract.checks.scoring import judge
from ..contract.checks.suite import Suite, UnusableSuite
from ..contract.checks.suite_files import read_suite
from ..contract.failures import Stopped, TrainingError
from ..contract.job import (
    CHECK_ANSWER_TOKENS,
    CHECK_BATCH_SIZE,
    CHECK_PROMPT_TOKENS,
    Job,
    check_metric,
    suite_of,
)
from ..contract.status import Progress
from ..ranks import agreement
from ..record import RunFiles
from .checks import Examinee
from .oom_recovery import free_memory

LEFT_OUT = "Checks were left out because the model could not answer; the log says why."


def read_suites(job: Job, folder: Path) -> tuple[Suite, ...]:
    """Return the suites of a job, whose paths start in the run folder. Raises TrainingError."""
    names = [name.strip() for name in job.check_suites.split(",") if name.strip()]
    suites = []
    for name in names if job.check_steps else ():
        try:
            suites.append(read_suite(folder / name))
        except UnusableSuite as error:
            raise TrainingError(f"check_suites: {error}.") from None
        except OSError as error:
            problem = f"check_suites: {name} cannot be read: {error.strerror}"
            raise TrainingError(f"{problem}; name another.") from None
    best = suite_of(job.keep_best)
    if best and best not in [suite.name for suite in suites]:
        raise TrainingError(f"keep_best: no suite {best} is among check_suites; add its file.")
    return tuple(suites)


class StepChecks:
    """Suites that a trainer's model answers at a step; what passed goes into metrics.jsonl."""

    def __init__(self, job: Job, trainer: Any, tokenizer: Any, run_files: RunFiles) -> None:
        # A generation on several devices would wait for those that had stopped.
        self._suites = read_suites(job, run_files.folder) if agreement.count() == 1 else ()
        self._trainer = trainer
        self._run_files = run_files
        self._examinee = Examinee(
            trainer.model,
            tokenizer,
            CHECK_BATCH_SIZE,
            self._report,
            is_stopped=lambda: run_files.stop.is_set,
            max_tokens=CHECK_BATCH_SIZE * (CHECK_PROMPT_TOKENS + CHECK_ANSWER_TOKENS),
        )

    def __call__(self, step: int) -> Mapping[str, float]:
        """Answer all suites, unless the trainer is at another step or they were answered then.

        Return the shares that passed, by metric; none after a stop. A model that cannot answer does
        not end the training.
        """
        if not self._suites or step != self._trainer.state.global_step:
            return {}
        if self._run_files.has_metric(step, check_metric(self._suites[0].name)):
            return {}
        try:
            shares = {check_metric(suite.name): self._share(suite) for suite in self._suites}
        except Stopped:
            return {}
        except Exception:
            traceback.print_exc()
            free_memory()
            if LEFT_OUT not in self._run_files.status.notes:
                self._run_files.note(LEFT_OUT)
            return {}
        epoch = float(self._trainer.state.epoch or 0)
        self._run_files.append_metrics(step, epoch, shares)
        return shares

    def _share(self, suite: Suite) -> float:
        """Return the share of the tests that pass, in percent."""
        # PEFT's `generate` calls the base model without the autocast that accelerate puts around
        # its forward.
        with self._trainer.accelerator.autocast():
            passed = judge(suite, self._examinee.answers(suite))
        return 100 * sum(passed) / len(passed)

    def _report(self, done: int, total: int) -> None:
        self._run_files.update(progress=Progress("checking", done, total, "tests"))
