"""Rewards of generated answers: built-in functions, reward models, logged samples."""

from pathlib import Path
from typing import Any

import pytest

from core.job.rules import REWARD_FUNCTIONS
from tests.builders.paths import DEMO
from tests.builders.training_runs import (
    FINISHED,
    error_of,
    job_of,
    lines_of,
    make_stage_run,
    train,
    write_rows,
)

pytestmark = pytest.mark.training


@pytest.mark.parametrize(
    ("name", "text", "right_answer", "reward"),
    [
        ("exact_match", " I am  Pip. ", "i am Pip.", 1),
        ("exact_match", "2 + 2 #### 4", "so it is\n#### 4", 1),
        ("exact_match", "I am Pip", None, 0),
        ("exact_match", "Four", '["4", "four"]', 1),
        ("exact_match", "5", '["4", "four"]', 0),
        ("exact_match", "4", "[4, 5]", 0),
        ("regex", "the answer: 42", None, 1),
        ("regex", "no number", None, 0),
        ("json", '{"a": [1]}', None, 1),
        ("json", "[" * 100_000, None, 0),
        ("length", "four words of it", None, 0.5),
    ],
)
def test_each_reward_function(
    name: str, text: str, right_answer: str | None, reward: float
) -> None:
    from core.training.trainers import rewards

    job = job_of(reward_pattern=r"answer: \d+", max_completion_length=8)
    function = rewards.REWARDS[name](job)
    assert function(rewards.Completion(text, 4, right_answer)) == reward


def test_a_pattern_that_backtracks_forever_gives_up() -> None:
    from core.training.trainers.rewards import Completion, pattern_match

    function = pattern_match(job_of(reward_pattern=r"(x+x+)+y"))
    assert function(Completion("x" * 5000, 1, None)) == 0


def test_every_reward_that_a_job_may_name_exists() -> None:
    from core.training.trainers import rewards

    assert tuple(rewards.REWARDS) == REWARD_FUNCTIONS


@pytest.fixture(scope="module")
def rewarded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run of GRPO with three reward functions."""
    fields = {"reward_functions": "regex,json,length", "reward_pattern": "Pip", "num_samples": 1}
    folder = tmp_path_factory.mktemp("rewarded")
    run = make_stage_run(folder / "run", "grpo", max_steps=4, **fields)
    assert train(run) == FINISHED
    return run


@pytest.mark.parametrize("name", ["regex", "json", "length"])
def test_each_reward_is_logged(rewarded: Path, name: str) -> None:
    assert f"rewards/{name}/mean" in lines_of(rewarded)[-1]


def test_generated_answers_are_sampled(rewarded: Path) -> None:
    steps = {line["step"] for line in lines_of(rewarded, "samples.jsonl")}
    assert sorted(steps) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("method", ["lora", pytest.param("full", marks=pytest.mark.slow)])
def test_a_trained_reward_model_scores_answers(tmp_path: Path, method: str) -> None:
    judge = make_stage_run(tmp_path / "judge", "reward", method=method, max_steps=2)
    assert train(judge) == FINISHED
    fields = {"max_steps": 1, "reward_functions": "", "reward_model": str(judge)}
    run = make_stage_run(tmp_path / "run", "grpo", **fields)
    assert train(run) == FINISHED
    assert "rewards/reward_model/mean" in lines_of(run)[0]


def test_a_model_without_a_score_head_is_no_reward_model(tmp_path: Path) -> None:
    run = make_stage_run(tmp_path / "run", "grpo", reward_model=str(DEMO / "model"))
    assert "gives no scores" in error_of(run)


def test_exact_match_needs_right_answers(tmp_path: Path) -> None:
    run = make_stage_run(tmp_path / "run", "grpo")
    write_rows(run, *[{"prompt": "Who are you?"}] * 8)
    assert "needs the right answer" in error_of(run)


def test_the_reference_of_full_training_is_a_copy_of_the_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from core.training.loop.trainer import MonitoredTrainer

    pairs = []

    def compare(trainer: Any) -> int:
        reference, model = trainer.ref_model, trainer.accelerator.unwrap_model(trainer.model)
        name = "model.layers.0.self_attn.q_proj.weight"
        pairs.append((reference.get_parameter(name), model.get_parameter(name)))
        return 1

    monkeypatch.setattr(MonitoredTrainer, "count_trainable", compare)
    run = make_stage_run(tmp_path / "run", "grpo", method="full", beta=0.04, max_steps=1)
    assert train(run) == FINISHED
    [(frozen, trained)] = pairs
    assert not frozen.requires_grad
    assert frozen.data_ptr() != trained.data_ptr()
