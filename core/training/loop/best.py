"""Best evaluation of a run so far: which step was best, and whether further steps are in vain.

Knows numbers only: neither models nor files.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..contract.job import CHECK_PREFIX, Job, check_metric, suite_of
from ..contract.stages import STAGES

REWARD, LOSS = "eval_reward", "eval_loss"


@dataclass
class BestEvaluation:
    """Best evaluation among those that were added, in the order of their steps."""

    metric: str
    patience: int = 0
    """Evaluations without an improvement after which a run ends; 0 never."""
    threshold: float = 0.0
    """Improvements that are not larger do not count for the patience."""
    step: int | None = None
    value: float | None = None
    num_in_vain: int = 0
    """Evaluations since the last one that counted as an improvement."""

    @classmethod
    def of(cls, job: Job) -> "BestEvaluation":
        """Return the start of a job's record, without evaluations."""
        metric = job.keep_best
        if suite := suite_of(metric):
            metric = check_metric(suite)
        elif metric == "off":
            metric = REWARD if STAGES[job.stage].generates else LOSS
        return cls(metric, job.early_stopping_patience, job.early_stopping_threshold)

    @property
    def is_of_suite(self) -> bool:
        """True if the evaluations are checks: the share of a suite that passes."""
        return self.metric.startswith(CHECK_PREFIX)

    @property
    def is_in_vain(self) -> bool:
        """True if the run should end now."""
        return 0 < self.patience <= self.num_in_vain

    def add(self, step: int, value: float | None) -> bool:
        """Add an evaluation; None for a value that is not a number. Return True if it is best."""
        gain = self._gain(value)
        if gain > self.threshold:
            self.num_in_vain = 0
        else:
            self.num_in_vain += 1
        if gain <= 0:
            return False
        self.step, self.value = step, value
        return True

    def add_rows(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add the evaluations among the rows of metrics.jsonl."""
        for row in rows:
            if self.is_evaluation(row):
                self.add(int(row["step"]), row.get(self.metric))

    def is_evaluation(self, row: Mapping[str, Any]) -> bool:
        """Return True if a row of metrics.jsonl has the metric, be it a number or not.

        A check at step 0 is that of the model before the training, of which there is no checkpoint.
        """
        has_metric = self.metric in row or self.metric in row.get("nonfinite", ())
        return has_metric and row["step"] > 0

    def sentence(self, step: int) -> str:
        """Return why a run ends early at a step."""
        kind = "check" if self.is_of_suite else "evaluation"
        evaluations = f"the last {self.patience} {kind}s"
        if self.patience == 1:
            evaluations = f"the last {kind}"
        if self.value is None:
            return f"Ended early at step {step:,}: {evaluations} gave no number."
        name = self.metric.removeprefix(CHECK_PREFIX)
        unit = " %" if self.is_of_suite else ""
        least = f" by more than {self.threshold:g}" if self.threshold else ""
        return (
            f"Ended early at step {step:,}: {evaluations} did not improve {name}{least}. "
            f"The best is {self.value:.4g}{unit}, at step {self.step:,}."
        )

    def _gain(self, value: float | None) -> float:
        """Return how much better a value is than the best one; infinite for the first."""
        if value is None:
            return 0.0
        if self.value is None:
            return float("inf")
        gain = self.value - value
        is_better_if_higher = self.is_of_suite or self.metric == REWARD
        return -gain if is_better_if_higher else gain
