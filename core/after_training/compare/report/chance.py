"""Differences and chance: intervals of shares, and of differences between groups of runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from statistics import fmean

from core.runs.checks.statistics import wilson_interval

# fmt: off
T_95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042,
)
# fmt: on
"""Quantiles of Student's t distribution for 95 %, two-sided, with 1 to 30 degrees of freedom."""


@dataclass(frozen=True)
class Contrast:
    """Difference between the group with the lowest mean and another one."""

    best: str
    other: str
    difference: float
    """Mean of the other minus that of the best: not negative."""
    margin: float
    """Half the width of the 95 % interval of the difference."""
    num_seeds: int

    @property
    def is_beyond_chance(self) -> bool:
        """True if the interval does not contain zero."""
        return self.difference > self.margin


def contrasts(values: Mapping[str, Mapping[int, float]]) -> tuple[Contrast, ...]:
    """Return the best group against each other one; () with fewer than two seeds in common.

    `values`: label -> seed -> value. Runs with one seed share the order and the split of the data,
    so a seed is a block: what it adds to all groups is no difference between them. The rest of the
    variance, with (groups - 1) x (seeds - 1) degrees of freedom, is what chance does.
    """
    values = {label: by_seed for label, by_seed in values.items() if len(by_seed) > 1}
    if len(values) < 2:
        return ()
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in values.values())))
    if len(seeds) < 2:
        return ()
    table = {label: [by_seed[seed] for seed in seeds] for label, by_seed in values.items()}
    means = {label: fmean(row) for label, row in table.items()}
    freedom = (len(table) - 1) * (len(seeds) - 1)
    error = sqrt(2 * _residual_squares(table) / freedom / len(seeds))
    margin = T_95[min(freedom, len(T_95)) - 1] * error
    best = min(means, key=lambda label: means[label])
    return tuple(
        Contrast(best, label, means[label] - means[best], margin, len(seeds))
        for label in means
        if label != best
    )


def _residual_squares(table: Mapping[str, list[float]]) -> float:
    """Return the sum of squares that neither groups nor seeds explain."""
    rows = list(table.values())
    total = fmean(fmean(row) for row in rows)
    of_seeds = [fmean(column) - total for column in zip(*rows, strict=True)]
    squares = 0.0
    for row in rows:
        mean = fmean(row)
        for value, of_seed in zip(row, of_seeds, strict=True):
            squares += (value - mean - of_seed) ** 2
    return squares


def difference_of_shares(first: tuple[int, int], second: tuple[int, int]) -> tuple[float, float]:
    """Return the 95 % interval of second - first share by Newcombe's method; (passed, total)."""
    share_1, share_2 = first[0] / first[1], second[0] / second[1]
    (low_1, high_1), (low_2, high_2) = wilson_interval(*first), wilson_interval(*second)
    difference = share_2 - share_1
    low = difference - sqrt((share_2 - low_2) ** 2 + (high_1 - share_1) ** 2)
    high = difference + sqrt((high_2 - share_2) ** 2 + (share_1 - low_1) ** 2)
    return low, high
