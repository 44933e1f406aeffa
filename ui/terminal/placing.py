"""Flags that say where a run trains, and what a cluster says of one. Submits nothing."""

from collections.abc import Mapping

from core.job import Problem, SpecError
from core.runs import Run
from core.runs.engines import ENGINES, Placement, engine_of
from ui.terminal.usage import flag_of

PREFIX = "place_"


def split_flags(flags: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the flags of a placement by its fields, and all others as they are."""
    place = {name: value for name, value in flags.items() if name.startswith(PREFIX)}
    others = {name: value for name, value in flags.items() if name not in place}
    return {name.removeprefix(PREFIX): value for name, value in place.items()}, others


def placement_of(flags: Mapping[str, str]) -> Placement | None:
    """Return where a run shall train, None if no flag says it.

    Raises SpecError for an engine that this machine does not find, and for flags without one.
    """
    if not flags:
        return None
    if "on" not in flags:
        names = " and ".join(map(flag_of, flags))
        problem = f"is missing: {names} says nothing without it"
        raise SpecError(Problem("on", problem, f"add --on {next(iter(ENGINES))}"))
    values = {"engine" if name == "on" else name: value for name, value in flags.items()}
    placement = Placement.parse(values)
    if not placement.is_here:
        engine_of(placement)
    elif unused := placement.given():
        fix = "leave it out, or choose a cluster with --on"
        problem = "a run of this machine has no use for it"
        raise SpecError(*(Problem(name, problem, fix) for name in unused))
    return placement


def require_cluster(run: Run, placement: Placement | None) -> None:
    """Raise SpecError if a run will train on this machine, which can only be followed."""
    if (placement or run.placement).is_here:
        problem = "a run of this machine waits for its turn only while it is followed"
        raise SpecError(Problem("detach", problem, "leave it out, or choose a cluster with --on"))


def instructions(run: Run) -> str:
    """Return what a user has to type to start the programs of a run, "" for nothing."""
    if run.submission is None:
        return ""
    placement = run.submission.placement
    return ENGINES[placement.engine].instructions(run.folder, placement, run.job.num_devices)
