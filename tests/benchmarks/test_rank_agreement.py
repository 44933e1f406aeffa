"""Test that the estimate of one rank agrees with a step that the real FSDP2 and DDP take."""

from collections.abc import Mapping, Sequence

import pytest

from benchmarks.rank_agreement import cases, compare
from core.job import TraceError

ALLOWED_ERROR = 0.03
MIN_JOBS = 40


def wrong(jobs: Sequence[tuple[str, Mapping[str, object]]]) -> list[str]:
    """Return a sentence about each job whose estimate is too far off."""
    found = []
    for job, compared in zip(jobs, compare(jobs), strict=True):
        if isinstance(compared, TraceError):
            found.append(f"{job}: {compared}")
        elif abs(compared.error) > ALLOWED_ERROR:
            found.append(f"{job}: {compared.error:+.1%}")
        elif abs(compared.load_error) > ALLOWED_ERROR:
            found.append(f"{job}: {compared.load_error:+.1%} while loading")
    return found


@pytest.mark.training
def test_a_rank_holds_what_its_estimate_says() -> None:
    assert wrong(list(cases(is_quick=True))) == []


@pytest.mark.slow
def test_a_rank_of_many_jobs_holds_what_its_estimate_says() -> None:
    jobs = list(cases())
    assert len(jobs) >= MIN_JOBS
    assert wrong(jobs) == []
