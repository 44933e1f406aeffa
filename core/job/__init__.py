"""Training jobs: settings, combinations that cannot work, and the errors of the project."""

from core.job.errors import (
    ChildError,
    Cure,
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
from core.job.spec import JobSpec

__all__ = [
    "ChildError",
    "Cure",
    "DatasetError",
    "JobSpec",
    "ModelNotFound",
    "PresetError",
    "PreviewError",
    "Problem",
    "RunNotFound",
    "SpecError",
    "TailorError",
    "TraceError",
    "UnknownArchitecture",
    "places",
    "rules",
]
