"""Every error that Tailor raises for a user to act on. Page and terminal print all of them one way.

    TailorError
    ├── SpecError              a job that cannot run as asked
    ├── ModelNotFound          a model that does not exist or cannot be used
    ├── UnknownArchitecture    a model whose layers Tailor does not know
    ├── PresetError            a wrong entry in a file of presets/
    ├── DatasetError           a file that cannot be read, converted or mixed
    ├── PreviewError           rows that cannot be shown or measured
    ├── TraceError             a model that cannot be traced
    ├── RunNotFound            an ID that no run has
    └── ChildError             a child process that gave no answer

Errors of programming, and OSError for a full or broken disk, stay what Python makes of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from core.training.contract.methods import METHODS


@dataclass(frozen=True)
class Cure:
    """Values of job fields that cure a problem: one click on the page, flags in the terminal."""

    title: str
    """Few words, for a button."""
    change: Mapping[str, str] = field(hash=False)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where, what, and what to do about it."""

    field: str
    """Usually a JobSpec field; otherwise what the user knows it by, such as a file or a run."""
    problem: str
    fix: str
    cure: Cure | None = None

    def with_method_of_adapter(self, method: str) -> "Problem":
        """Return the problem; a cure that chooses an adapter chooses a method for it as well."""
        if self.cure is None or "adapter" not in self.cure.change or METHODS[method].trains_adapter:
            return self
        return replace(self, cure=replace(self.cure, change={**self.cure.change, "method": "lora"}))

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}; {self.fix}"


class TailorError(Exception):
    """Error that a user can act on. `problems` lists everything that is wrong."""

    def __init__(self, *problems: Problem) -> None:
        self.problems = problems
        super().__init__("\n".join(map(str, problems)))

    @property
    def reason(self) -> str:
        """Problems alone, without fields and fixes: for use inside another message."""
        return "; ".join(each.problem for each in self.problems)


class SpecError(TailorError):
    """Job that cannot run as asked."""


class ModelNotFound(TailorError):
    """Model reference that leads to no usable model."""


class UnknownArchitecture(TailorError):
    """Model whose layers Tailor does not know, so that it cannot estimate its memory."""


class PresetError(TailorError):
    """Wrong entry in a file of presets/."""


class DatasetError(TailorError):
    """Dataset that cannot be read, converted or mixed."""


class PreviewError(TailorError):
    """Rows that cannot be shown or measured."""


class TraceError(TailorError):
    """Job whose memory cannot be traced."""


class RunNotFound(TailorError):
    """ID that no run has."""


class ChildError(TailorError):
    """Child process that gave no answer: it died, took too long, was cancelled or refused."""

    def __init__(
        self, cause: Literal["died", "too_long", "cancelled", "refused"], problem: Problem
    ) -> None:
        self.cause = cause
        super().__init__(problem)
