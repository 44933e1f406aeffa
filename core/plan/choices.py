"""Plan: the choices for a job, each with the number that decided it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from core.fit import Case, Change, Harm
from core.job import JobSpec
from core.memory.precision import precision_of
from core.methods import STAGES
from core.plan.ladder import PROFILES, climb
from core.plan.reasons import REASONS, Outcome
from core.presets import Gpu
from core.shapes import ModelShape
from core.speed import RowStatistics

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
    fixed: frozenset[str] = frozenset(),
) -> Plan:
    """What `job.profile` chooses for a job on a card, apart from the fields in `fixed`; nothing for "custom".

    "fastest" is the fastest way by forecast whose estimate fits; "smallest" keeps and holds as little as it can. Both
    leave the model, the method, the length and the rows of an optimizer step as they are. If nothing fits, the plan is
    the smallest way there is. Raises SpecError for a job that cannot run on this model.
    """
    if job.profile not in PROFILES:
        return Plan()
    asked = Case(job, shape, gpu, rows)
    start = asked.changed({name: value for name, value in _facts(asked).items() if name not in fixed}) or asked
    chosen = climb(start, PROFILES[job.profile], fixed)
    outcome = Outcome(asked, chosen)
    reasons = {field: explain(outcome) for field, explain in REASONS.items() if field not in fixed}
    return Plan(
        tuple(
            Choice(field, getattr(chosen.job, field), reason, _harm(field, getattr(chosen.job, field), asked.job))
            for field, reason in reasons.items()
            if reason
        )
    )


def _facts(case: Case) -> Mapping[str, object]:
    """The choices that need no search: the precision of the weights, and when the reference model is asked."""
    job = case.job
    weight_bytes = precision_of(job.model_copy(update={"dtype": "auto"}), case.gpu).weight_bytes
    half = "bfloat16" if case.gpu.supports_bf16 else "float16"
    facts: dict[str, object] = {"dtype": half if weight_bytes == 2 else "float32"}
    if "precompute_ref_log_probs" in STAGES[job.stage].fields:
        facts["precompute_ref_log_probs"] = job.num_train_epochs >= 2 or not job.trains_adapter
    return facts


def _harm(field: str, value: object, asked: JobSpec) -> Harm:
    """8-bit states are stored less exactly, and a step of joined rows sees a few rows more or less."""
    is_slight = (field == "optim" and "8bit" in str(value)) or (field == "packing" and value != asked.packing)
    return Harm.SLIGHT if is_slight else Harm.NONE
