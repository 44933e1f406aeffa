"""Refusal: one combination of settings that cannot work, and what to do instead."""

from collections.abc import Callable
from dataclasses import dataclass

from core.job.errors import Problem
from core.job.fields import JobFields
from core.training.contract.methods import METHODS, Method
from core.training.contract.stages import STAGES, Stage


@dataclass(frozen=True)
class Refusal:
    """Combination of fields that cannot work."""

    field: str
    """JobSpec field to change."""
    applies: Callable[[JobFields, Stage, Method], bool]
    problem: str
    """May name attributes of the job, its stage and its method, such as {stage.id}."""
    fix: str

    def problem_of(self, job: JobFields) -> Problem | None:
        """Return the problem with this job, None if there is none."""
        stage, method = STAGES[job.stage], METHODS[job.method]
        if not self.applies(job, stage, method):
            return None
        facts = {"job": job, "stage": stage, "method": method}
        return Problem(self.field, self.problem.format_map(facts), self.fix.format_map(facts))
