"""Fixes for a job that does not fit, speedups for one that does, estimated and ranked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import accumulate
from types import MappingProxyType

from core.advise.case import Case, FieldValues, Harm
from core.advise.changes import MEMORY_SAVERS, UNQUANTIZE, Change, Saves, Variants
from core.advise.choices import plan
from core.advise.more_devices import MORE_DEVICES
from core.job import JobSpec
from core.memory import PastRun
from core.memory.estimate import Verdict
from core.models import Gpu, ModelShape
from core.speed import RowStatistics

MAX_FIXES = 6
MIN_SAVING = 0.01
MIN_GAIN = 0.03
"""Shares of the memory and of the time below which a change is not worth a button."""

MORE_DEVICES_HARM = 1.5
"""Rank of a fix that takes more devices: after what only rounds, before what trains otherwise."""

TOGETHER: Mapping[Harm, str] = MappingProxyType(
    {
        Harm.NONE: "Together these make it fit, and the result stays the same.",
        Harm.SLIGHT: "Together these make it fit, with some numbers stored less exactly.",
        Harm.REAL: "Together these make it fit; nothing gentler does.",
    }
)
"""Why a combination is proposed, by the worst of its harms."""


@dataclass(frozen=True)
class Fix:
    """Estimated change of a job."""

    change: FieldValues
    total_bytes: int
    """Memory of the changed job."""
    saves_bytes: int
    """Negative where the change takes more."""
    verdict: Verdict
    """Verdict on the changed job."""
    slowdown: float | None
    """Forecast time of the whole job, after / before; below 1 is faster, None is unknown."""
    title: str
    """Few words, for a button."""
    why: str
    """One sentence: how it helps and what it costs."""
    harm: Harm
    saves: Saves

    @property
    def fits(self) -> bool:
        """Return True if the changed job fits with a margin for the error of the estimate."""
        return self.verdict == "fits"

    @property
    def cost(self) -> float:
        """Return the harm; more devices come after what only rounds, before what trains
        otherwise."""
        if "num_devices" in self.change:
            return max(float(self.harm), MORE_DEVICES_HARM)
        return float(self.harm)

    def to_json(self) -> dict[str, object]:
        """Return the object that `estimate --json` lists in `fixes`."""
        return {**vars(self), "change": dict(self.change), "harm": self.harm.name.lower()}


@lru_cache(maxsize=256)
def suggest_fixes(
    job: JobSpec,
    shape: ModelShape,
    gpu: Gpu,
    rows: RowStatistics | None = None,
    past: tuple[PastRun, ...] = (),
    *,
    most_devices: int = 1,
) -> tuple[Fix, ...]:
    """Return what to change, best first.

    For a job that does not fit or is tight: first what makes it fit, the least harmful and then the
    fastest, with more devices before what changes the training; then what only helps, by bytes
    saved. Changes are combined where no single one is
    enough, or none that does so little harm. For a job that fits: what makes it faster and still
    fits; empty where the speed is unknown.

    Raises SpecError for a job that cannot run on this model.
    """
    case = Case(job, shape, gpu, rows, past, most_devices)
    fixes = _speedups(case) if case.fits else _memory_fixes(case)
    return tuple(sorted(fixes, key=_rank)[:MAX_FIXES])


def _memory_fixes(case: Case) -> list[Fix]:
    fixes = [
        _fix(case, change.fitting_case(case), [change], change.why) for change in MEMORY_SAVERS
    ]
    together = _gentlest_combination(case)
    if len(together) > 1:
        combined = _fix(case, _apply(case, together), together, TOGETHER[_harm(together)])
        if all(combined.harm < fix.harm for fix in fixes if fix.fits):
            fixes.append(combined)
    fixes += _fixes_with_more_devices(case)
    least_bytes = MIN_SAVING * case.memory.total_bytes
    return [fix for fix in fixes if fix.saves_bytes > least_bytes]


def _fixes_with_more_devices(case: Case) -> list[Fix]:
    """Return the division among more devices, with what else is needed to fit."""
    divided = MORE_DEVICES.fitting_case(case)
    if divided is case:
        return []
    if divided.fits:
        return [_fix(case, divided, [MORE_DEVICES], MORE_DEVICES.why)]
    needed = _gentlest_combination(divided)
    if not needed:
        return [_fix(case, divided, [MORE_DEVICES], MORE_DEVICES.why)]
    why = TOGETHER[_harm(needed)]
    return [_fix(case, _apply(divided, needed), [MORE_DEVICES, *needed], why)]


def _gentlest_combination(case: Case) -> list[Change]:
    """Return changes that make a case fit together; empty if all of them are not enough.

    Adds changes from the least harmful on, then drops those not needed, the most harmful first.
    """
    steps = accumulate(
        MEMORY_SAVERS, lambda changed, change: change.fitting_case(changed), initial=case
    )
    num_needed = next((number for number, changed in enumerate(steps) if changed.fits), 0)
    needed = list(MEMORY_SAVERS[:num_needed])
    for change in reversed(needed[:-1]):
        fewer = [each for each in needed if each is not change]
        if _apply(case, fewer).fits:
            needed = fewer
    return needed


def _apply(case: Case, changes: Sequence[Change]) -> Case:
    """Return the case after these changes, each at its strongest until one makes it fit."""
    return reduce(lambda changed, change: change.fitting_case(changed), changes, case)


def _fastest(*also_kept: str) -> Variants:
    """Return the settings of the profile "fastest", in the precision of the job."""

    def variants(case: Case) -> list[FieldValues]:
        job = case.job.model_copy(update={"profile": "fastest"})
        kept = frozenset({"dtype", *also_kept})
        return [plan(job, case.shape, case.gpu, case.rows, kept, past=case.past).change]

    return variants


FASTEST = Change(
    "Fastest that fits",
    "Applies the settings of this profile, but packs no rows.",
    _fastest("packing"),
    saves="time",
)
FASTEST_PACKED = Change(
    "Fastest that fits, rows packed",
    "Applies the settings of this profile: short rows are joined, so that nothing is padding.",
    _fastest(),
    Harm.SLIGHT,
    saves="time",
)


def _speedups(case: Case) -> list[Fix]:
    """Return the fastest settings that fit, each worth a button beside those before it."""
    routes = [[FASTEST], [UNQUANTIZE, FASTEST], [FASTEST_PACKED], [UNQUANTIZE, FASTEST_PACKED]]
    fixes: list[Fix] = []
    best = 1.0
    for changes in routes:
        fix = _fix(case, _apply(case, changes), changes, changes[0].why)
        if fix.fits and fix.slowdown and fix.slowdown <= best * (1 - MIN_GAIN):
            fixes.append(fix)
            best = fix.slowdown
    return fixes


def _fix(case: Case, after: Case, changes: Sequence[Change], why: str) -> Fix:
    """Return the effect of changes that lead from one case to another."""
    old, new = case.job.model_dump(), after.job.model_dump()
    seconds, seconds_before = after.seconds, case.seconds
    slowdown = seconds / seconds_before if seconds and seconds_before else None
    return Fix(
        change=MappingProxyType({name: new[name] for name in new if new[name] != old[name]}),
        total_bytes=after.memory.total_bytes,
        saves_bytes=case.memory.total_bytes - after.memory.total_bytes,
        verdict=after.memory.verdict,
        slowdown=slowdown,
        title=" + ".join(change.title for change in changes).format(job=after.job),
        why=why.format(job=after.job),
        harm=_harm(changes),
        saves=changes[0].saves,
    )


def _harm(changes: Sequence[Change]) -> Harm:
    return max(change.harm for change in changes)


def _rank(fix: Fix) -> tuple[float, ...]:
    """Return a sort key, best first: see `suggest_fixes`."""
    if fix.fits:
        return (0, fix.cost, fix.slowdown or 1, -fix.saves_bytes)
    return (1, -fix.saves_bytes)
