"""Fixes for a job that does not fit, uses of the room for one that does: each remedy tried, estimated and ranked."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import accumulate
from types import MappingProxyType

from core.advise.case import Case, Change, Harm
from core.advise.changes import IDEAS, REMEDIES, Remedy
from core.job import JobSpec
from core.memory import Verdict
from core.models import Gpu, ModelShape
from core.speed import RowStatistics

MOST_FIXES, MOST_IDEAS = 6, 3
LEAST_SAVING, LEAST_GAIN = 0.01, 0.03
"""Shares of the memory and of the time below which a change is not worth a button."""

TOGETHER: Mapping[Harm, str] = MappingProxyType(
    {
        Harm.NONE: "Together these make it fit, and the result stays the same.",
        Harm.SLIGHT: "Together these make it fit, with some numbers stored less exactly.",
        Harm.REAL: "Together these make it fit; nothing gentler does.",
    }
)
"""Why a combination of remedies, by the worst of their harms."""


@dataclass(frozen=True)
class Fix:
    """A change of a job, estimated."""

    change: Change
    total_bytes: int
    """Memory of the changed job."""
    saves_bytes: int
    """Negative where the change takes more."""
    verdict: Verdict
    """Of the changed job."""
    slowdown: float | None
    """Time of the whole job after / before, by forecast; below 1 is faster, None is unknown."""
    title: str
    """A few words, for a button."""
    why: str
    """One sentence: how it helps and what it costs."""
    harm: Harm

    @property
    def fits(self) -> bool:
        """True if the changed job fits with room for what the estimate may be off."""
        return self.verdict == "fits"

    def to_json(self) -> dict[str, object]:
        """The object that `estimate --json` lists in `fixes`."""
        return {**vars(self), "change": dict(self.change), "harm": self.harm.name.lower()}


@lru_cache(maxsize=256)
def suggest_fixes(
    job: JobSpec, shape: ModelShape, gpu: Gpu, rows: RowStatistics | None = None
) -> tuple[Fix, ...]:
    """What to change, best first, for a job that does not fit or is tight; nothing for one that fits.

    First what makes it fit: the least harmful, then the fastest. Then what only helps, by bytes saved. A combination is
    among them where no single change is enough, or none that does so little harm.

    Raises SpecError for a job that cannot run on this model.
    """
    case = Case(job, shape, gpu, rows)
    if case.fits:
        return ()
    fixes = [_fix(case, remedy.cure(case), (remedy,)) for remedy in REMEDIES]
    together = _gentlest_combination(case)
    if len(together) > 1:
        combined = _fix(case, _cure(case, together), together)
        fixes += [combined] if all(combined.harm < fix.harm for fix in fixes if fix.fits) else []
    worthwhile = (fix for fix in fixes if fix.saves_bytes > LEAST_SAVING * case.memory.total_bytes)
    return tuple(sorted(worthwhile, key=_rank)[:MOST_FIXES])


@lru_cache(maxsize=256)
def use_the_room(
    job: JobSpec, shape: ModelShape, gpu: Gpu, rows: RowStatistics | None = None
) -> tuple[Fix, ...]:
    """What would make a job that fits faster and still fit, fastest first; nothing where the speed is unknown.

    Raises SpecError for a job that cannot run on this model.
    """
    case = Case(job, shape, gpu, rows)
    if not case.fits or case.seconds is None:
        return ()
    options = ((idea, idea.fitting_cases(case)) for idea in IDEAS)
    fastest = (
        (idea, min(cases, key=lambda each: each.seconds or 0)) for idea, cases in options if cases
    )
    fixes = [_fix(case, after, (idea,)) for idea, after in fastest]
    gains = (fix for fix in fixes if fix.fits and fix.slowdown and fix.slowdown <= 1 - LEAST_GAIN)
    return tuple(sorted(gains, key=_rank)[:MOST_IDEAS])


def _gentlest_combination(case: Case) -> tuple[Remedy, ...]:
    """Remedies that make a case fit together: added from the least harmful on, then those left out that need not be
    there, from the most harmful on. Empty if all of them are not enough."""
    stages = accumulate(REMEDIES, lambda changed, remedy: remedy.cure(changed), initial=case)
    needed = next((number for number, changed in enumerate(stages) if changed.fits), 0)
    chosen = list(REMEDIES[:needed])
    for remedy in reversed(chosen[:-1]):
        fewer = [each for each in chosen if each is not remedy]
        if _cure(case, fewer).fits:
            chosen = fewer
    return tuple(chosen)


def _cure(case: Case, remedies: Iterable[Remedy]) -> Case:
    """The case after these remedies, each at its strongest but the one that makes it fit."""
    return reduce(lambda changed, remedy: remedy.cure(changed), remedies, case)


def _fix(case: Case, after: Case, remedies: Sequence[Remedy]) -> Fix:
    """What these remedies did to a case."""
    harm = max(remedy.harm for remedy in remedies)
    old, new = case.job.model_dump(), after.job.model_dump()
    before_seconds, seconds = case.seconds, after.seconds
    return Fix(
        change=MappingProxyType({name: new[name] for name in new if new[name] != old[name]}),
        total_bytes=after.memory.total_bytes,
        saves_bytes=case.memory.total_bytes - after.memory.total_bytes,
        verdict=after.memory.verdict,
        slowdown=seconds / before_seconds if seconds and before_seconds else None,
        title=" + ".join(remedy.title for remedy in remedies).format(job=after.job),
        why=(remedies[0].why if len(remedies) == 1 else TOGETHER[harm]).format(job=after.job),
        harm=harm,
    )


def _rank(fix: Fix) -> tuple[float, ...]:
    """Lowest first: see `suggest_fixes`."""
    return (0, fix.harm, fix.slowdown or 1, -fix.saves_bytes) if fix.fits else (1, -fix.saves_bytes)
