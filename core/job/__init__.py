"""What is asked of a training: the job, the tables it draws from, and the combinations that cannot work."""

from core.job.methods import EXTRA_OPTIMIZERS, METHODS, STAGES, Method, Stage, defaults_of
from core.job.rules import REWARD_FUNCTIONS, refusals_to_train
from core.job.spec import JobSpec, Optimizer, Problem, SpecError

__all__ = [
    "EXTRA_OPTIMIZERS",
    "METHODS",
    "REWARD_FUNCTIONS",
    "STAGES",
    "JobSpec",
    "Method",
    "Optimizer",
    "Problem",
    "SpecError",
    "Stage",
    "defaults_of",
    "refusals_to_train",
]
