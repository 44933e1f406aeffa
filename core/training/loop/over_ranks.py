"""Memory and time of all ranks: the least and the most of each, for the metrics of a step."""

from collections.abc import Mapping

from ..ranks import agreement

COMPUTING = ("forward_seconds", "backward_seconds", "optimizer_seconds")
"""Parts of a step's time in which a rank computes, and waits for the others."""


def over_ranks(values: Mapping[str, float]) -> dict[str, float]:
    """Return the values of this rank and, of several, the extremes of all. Every rank calls it."""
    found = dict(values)
    if agreement.count() == 1:
        return found
    numbers = (
        values.get("device_used_bytes", 0.0),
        sum(values.get(name, 0.0) for name in COMPUTING),
    )
    memory, seconds = agreement.extremes(numbers)
    found["rank_memory_min_bytes"], found["rank_memory_max_bytes"] = memory
    found["rank_seconds_min"], found["rank_seconds_max"] = seconds
    return found
