"""ENGINES: every kind of cluster, in the order in which they are offered."""

from collections.abc import Mapping
from types import MappingProxyType

from core.job import Problem, SpecError
from core.runs.engines.by_hand import BY_HAND
from core.runs.engines.placement import HERE, Placement
from core.runs.engines.ray_jobs import RAY
from core.runs.engines.record import Engine, Found
from core.runs.engines.slurm import SLURM

ORDER = (SLURM, RAY, BY_HAND)
ENGINES: Mapping[str, Engine] = MappingProxyType({engine.id: engine for engine in ORDER})
"""Id -> engine. `here` is none of them: runs of this machine wait in the queue of the home."""


def engine_of(placement: Placement) -> Engine:
    """Return the engine of a placement that is not here.

    Raises SpecError if there is none of this name, if it is not found on this machine, or if it
    has no use for a field.
    """
    engine = ENGINES.get(placement.engine)
    if engine is None:
        names = ", ".join((HERE, *ENGINES))
        raise SpecError(Problem("on", f"{placement.engine[:40]!r} is no engine", f"choose {names}"))
    unused = [name for name in placement.given() if name not in engine.fields]
    if unused:
        problem = f"{engine.title} has no use for it"
        raise SpecError(*(Problem(name, problem, "leave it out") for name in unused))
    found = engine.look(placement)
    if found.problem:
        raise SpecError(Problem("on", found.problem, found.fix))
    return engine


def found_engines() -> Mapping[str, Found]:
    """Return the clusters to which this machine can send runs, by the id of their engine."""
    seen = {engine.id: engine.look(Placement(engine.id)) for engine in ENGINES.values()}
    return {name: found for name, found in seen.items() if not found.problem}
