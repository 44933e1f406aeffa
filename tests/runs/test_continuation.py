"""Sentences about the schedule of a run that continues another."""

from pathlib import Path

import pytest

from core.job import JobSpec
from core.runs import Home, read
from core.runs.results import Continuation
from core.training.contract.checkpoint_files import Checkpoint
from tests.builders.fake_runs import bare_run

START, LAST = 100, 200


@pytest.mark.parametrize(
    "fields, said",
    [
        (
            {"lr_scheduler_type": "warmup_stable_decay", "lr_decay_ratio": 0.2, "warmup_steps": 5},
            "rises again from 0.0001 to 0.001 by step 105, stays there, then falls after step 180 "
            "to 0.0001 at step 200",
        ),
        (
            {"lr_scheduler_type": "warmup_stable_decay", "lr_decay_ratio": 1.0, "warmup_steps": 5},
            "by step 105, then falls (warmup_stable_decay) to 0.0001 at step 200",
        ),
        (
            {"lr_scheduler_type": "polynomial", "warmup_ratio": 0},
            "begins again at 0.001, then falls (polynomial) to 0.0001 at step 200",
        ),
        ({"lr_scheduler_type": "constant"}, "stays 0.001"),
    ],
)
def test_the_course_of_the_learning_rate_is_said(
    home: Home, fields: dict[str, object], said: str
) -> None:
    settings: dict[str, object] = {"learning_rate": 1e-3, "min_lr_rate": 0.1}
    job = JobSpec.parse(settings | fields)
    bare_run(home, "first")
    checkpoint = Checkpoint(Path("checkpoint-100"), START, is_complete=True)
    plan = Continuation(read(home, "first"), checkpoint, job, LAST, 2.0)
    assert said in plan.sentence
