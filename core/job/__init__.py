"""What is asked of a training: the job, the combinations that cannot work, and the errors of the whole project."""

from core.job.errors import (
    ChildDied,
    DatasetError,
    ModelNotFound,
    PresetError,
    PreviewError,
    Problem,
    RunNotFound,
    SpecError,
    TailorError,
    TraceError,
    UnknownArchitecture,
)
from core.job.rules import REWARD_FUNCTIONS, refusals_to_train
from core.job.spec import JobSpec, Optimizer

__all__ = [
    "REWARD_FUNCTIONS",
    "ChildDied",
    "DatasetError",
    "JobSpec",
    "ModelNotFound",
    "Optimizer",
    "PresetError",
    "PreviewError",
    "Problem",
    "RunNotFound",
    "SpecError",
    "TailorError",
    "TraceError",
    "UnknownArchitecture",
    "refusals_to_train",
]
