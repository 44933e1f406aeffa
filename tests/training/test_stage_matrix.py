"""Combinations of stages, methods, settings, optimizers and losses: each trains or is refused."""

import json
import math
from itertools import product
from pathlib import Path

import pytest

from benchmarks.stage_table import SETTINGS, TRAINABLE, Setting, refusal
from core.training.contract.methods import METHODS
from core.training.contract.stages import STAGES
from tests.builders.training_runs import (
    FINISHED,
    lines_of,
    losses_of,
    make_stage_run,
    result_is_usable,
    status_of,
    train,
)

pytestmark = [
    pytest.mark.training,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU:UserWarning"),
]
OPTIMIZERS = ["adamw_torch", "adamw_8bit", "paged_adamw_32bit", "lion_8bit", "adafactor", "sgd"]


def require_trained(run: Path) -> None:
    """Train a run; all its steps must have finite losses and its result must be usable."""
    assert train(run) == FINISHED, status_of(run)["error"]
    num_steps = json.loads((run / "job.json").read_text())["max_steps"]
    losses = list(losses_of(run).values())
    assert [math.isfinite(loss) for loss in losses] == [True] * num_steps
    assert max(line.get("grad_norm", 0) for line in lines_of(run)) > 0
    assert result_is_usable(run)


@pytest.mark.parametrize(("stage", "method"), [*product(TRAINABLE, METHODS)])
def test_every_stage_trains_with_every_method(tmp_path: Path, stage: str, method: str) -> None:
    assert refusal(stage=stage, method=method) is None
    require_trained(make_stage_run(tmp_path / "run", stage, method=method))


@pytest.mark.parametrize(
    ("setting", "value"), [(setting, value) for setting in SETTINGS for value in setting.tried_with]
)
def test_every_setting_trains_or_is_refused(tmp_path: Path, setting: Setting, value: str) -> None:
    fields = {"stage": "sft", setting.axis: value, **setting.fields}
    if setting.needs_cuda or refusal(**fields):
        return  # other tests cover what the program itself refuses
    if "adapter" in fields:
        require_trained(make_stage_run(tmp_path / "earlier", "sft"))
        fields["adapter"] = str(tmp_path / "earlier")
    require_trained(make_stage_run(tmp_path / "run", **fields))


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_every_optimizer_trains(tmp_path: Path, method: str, optim: str) -> None:
    require_trained(make_stage_run(tmp_path / "run", "sft", method=method, optim=optim))


@pytest.mark.parametrize("stage", ["dpo", "cpo"])
def test_every_loss_of_a_stage_trains(tmp_path: Path, stage: str) -> None:
    for loss_type in STAGES[stage].loss_types:
        require_trained(make_stage_run(tmp_path / loss_type, stage, loss_type=loss_type))
