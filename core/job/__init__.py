"""What is asked of a training: the job, and the combinations that cannot work."""

from core.job.rules import REWARD_FUNCTIONS, refusals_to_train
from core.job.spec import JobSpec, Optimizer, Problem, SpecError

__all__ = ["REWARD_FUNCTIONS", "JobSpec", "Optimizer", "Problem", "SpecError", "refusals_to_train"]
