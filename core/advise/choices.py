"""Plan: the choices for a job, each with the number that decided it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from core.advise import Case, Change, Harm
from core.advise.reasons import REASONS, Outcome
from core.advise.search import PROFILES, climb, seconds_per_token
from core.job import JobSpec
from core.memory.program import precision_of
from core.models import Gpu, ModelShape
from core.speed import RowStatistics
from core.speed.rows import times_read
from core.training.contract.stages import STAGES

PLANNED_FIELDS = frozenset(REASONS)
"""The JobSpec fields that a plan may choose."""


@dataclass(frozen=True)
class Choice:
    """One field of a plan."""

    field: str
    value: object
    reason: str
    """One sentence, with the number that decided it."""
    harm: Harm
    """NONE, or SLIGHT: a plan never does more."""


@dataclass(frozen=True)
class Plan:
    """What was chosen for a job."""

    choices: tuple[Choice, ...] = ()
    """In the order of a form; empty for a job that chooses for itself."""

    @property
    def change(self) -> Change:
        """The chosen fields and their values, those that a job had before among them."""
        return MappingProxyType({choice.field: choice.value for choice in self.choices})


@lru_cache(maxsize=256)
def plan(
    job: JobSpec,
    shape: ModelShape,
    gpu: Gpu,
    rows: RowStatistics | None = None,
    set_by_user: frozenset[str] = frozenset(),
) -> Plan:
    """What `job.profile` chooses for a job on a card, apart from the fields in `set_by_user`; nothing for "custom".

    "fastest" is the fastest way by forecast whose estimate fits; "smallest" keeps and holds as little as it can. Both
    leave the model, the method, the length and the rows of an optimizer step as they are. If nothing fits, the plan is
    the smallest way there is. Raises SpecError for a job that cannot run on this model.
    """
    if job.profile not in PROFILES:
        return Plan()
    asked = Case(job, shape, gpu, rows)
    chosen = _better(
        climb(start, PROFILES[job.profile], set_by_user) for start in _starts(asked, set_by_user)
    )
    outcome = Outcome(asked, chosen)
    reasons = {
        field: explain(outcome) for field, explain in REASONS.items() if field not in set_by_user
    }
    return Plan(
        tuple(
            Choice(
                field,
                getattr(chosen.job, field),
                reason,
                _harm(field, getattr(chosen.job, field), asked.job),
            )
            for field, reason in reasons.items()
            if reason
        )
    )


def _starts(case: Case, set_by_user: frozenset[str]) -> Iterator[Case]:
    """The job with the precision of the card: what needs no search. Twice, where only one can tell which time is the
    better to ask the reference model."""
    weight_itemsize = precision_of(
        case.job.model_copy(update={"dtype": "auto"}), case.gpu
    ).weight_itemsize
    half = "bfloat16" if case.gpu.supports_bf16 else "float16"
    dtype = {"dtype": half if weight_itemsize == 2 else "float32"}
    for beforehand in _times_to_ask(case) or ({},):
        change = {
            name: value
            for name, value in {**dtype, **beforehand}.items()
            if name not in set_by_user
        }
        yield case.changed(change) or case


def _times_to_ask(case: Case) -> tuple[Change, ...]:
    """Whether the reference model should read all rows beforehand. That takes longer if the training does not come by
    all of them, but spares the room of a second copy."""
    job, times = case.job, times_read(case.job, case.rows)
    if "precompute_ref_log_probs" not in STAGES[job.stage].fields:
        return ()
    saves_time, may_take_longer = times is not None and times > 1, times is not None and times < 1
    either = not job.trains_adapter and may_take_longer and job.profile == "fastest"
    choices = (True, False) if either else (saves_time or not job.trains_adapter,)
    return tuple({"precompute_ref_log_probs": value} for value in choices)


def _better(cases: Iterable[Case]) -> Case:
    """The first, or another that fits too: without states in 8 bits if one can do so, then the faster."""
    first, *others = cases
    fitting = [case for case in (first, *others) if others and case.fits]
    return min(
        fitting, key=lambda case: ("8bit" in case.job.optim, seconds_per_token(case)), default=first
    )


def _harm(field: str, value: object, asked: JobSpec) -> Harm:
    """8-bit states are stored less exactly, and a step of joined rows sees a few rows more or less."""
    is_slight = (field == "optim" and "8bit" in str(value)) or (
        field == "packing" and value != asked.packing
    )
    return Harm.SLIGHT if is_slight else Harm.NONE
