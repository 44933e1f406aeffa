"""Plan: the settings that a profile chooses, each with its reason. The search is in search.py."""

from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from core.advise.case import Case, FieldValues
from core.advise.reasons import reasons
from core.advise.search import search
from core.job import JobSpec
from core.memory import PastRun
from core.models import Gpu, ModelShape
from core.speed import RowStatistics


@dataclass(frozen=True)
class Choice:
    """One planned field."""

    field: str
    value: object
    reason: str
    """One sentence, with the number that decided it."""


@dataclass(frozen=True)
class Plan:
    """Settings that a profile chose for a job."""

    choices: tuple[Choice, ...] = ()
    """In the order of a form; empty under the profile "custom"."""

    @property
    def change(self) -> FieldValues:
        """Return every planned field with its value, whether it is new or not."""
        return MappingProxyType({choice.field: choice.value for choice in self.choices})


@lru_cache(maxsize=256)
def plan(
    job: JobSpec,
    shape: ModelShape,
    gpu: Gpu,
    rows: RowStatistics | None = None,
    set_by_user: frozenset[str] = frozenset(),
    *,
    past: tuple[PastRun, ...] = (),
) -> Plan:
    """Return what `job.profile` chooses for a job on a card, except the fields `set_by_user`.

    Model, method, length and the rows of an optimizer step stay as they are. Nothing is chosen
    under "custom". Raises SpecError for a job that cannot run on this model.
    """
    if job.profile == "custom":
        return Plan()
    chosen = search(Case(job, shape, gpu, rows, past), set_by_user)
    return Plan(
        tuple(
            Choice(field, getattr(chosen.job, field), sentence)
            for field, sentence in reasons(chosen).items()
            if field not in set_by_user
        )
    )
