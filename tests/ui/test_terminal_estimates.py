"""Estimates of a comparison as the terminal prints them."""

import pytest

from core.after_training.compare import Study, plan_variants
from core.after_training.compare.study import Budget
from core.models import demo_fields
from ui.terminal.estimates import print_estimates


def test_seed_beyond_the_budget_alone_is_said_to_be_left_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    study = Study.parse(demo_fields("sft"), ["lora"], num_seeds=2, budget=Budget(max_runs=1))
    print_estimates(plan_variants(study))
    said = " ".join(capsys.readouterr().out.split())
    assert "LoRA: Fits" in said
    assert "seed 43 left out, beyond the budget of 1 runs" in said
    assert "1 of 2 runs can start" in said
