"""Statistics of checks: how sure a share is, and whether two counts differ by more than chance."""

from math import comb, sqrt

Z_95 = 1.959964
"""Standard deviations around the mean that hold 95 % of a normal distribution."""
MAX_CHANCE = 0.05
"""Largest p-value at which a difference is called more than chance."""


def wilson_interval(passed: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of `total` (Wilson, 1927), from 0 to 1."""
    if total == 0:
        return 0.0, 1.0
    share = passed / total
    scale = 1 + Z_95**2 / total
    center = (share + Z_95**2 / (2 * total)) / scale
    half = Z_95 * sqrt(share * (1 - share) / total + Z_95**2 / (4 * total**2)) / scale
    return max(0.0, center - half), min(1.0, center + half)


def sign_test(num_lost: int, num_gained: int) -> float:
    """Return the two-sided p-value of the exact sign test.

    It is how often a fair coin would divide the tests that changed at least as unevenly.
    """
    num_changed = num_lost + num_gained
    rarer = min(num_lost, num_gained)
    ways = sum(comb(num_changed, number) for number in range(rarer + 1))
    return min(1.0, 2 * ways / 2**num_changed)
