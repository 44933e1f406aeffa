"""Stages: each learns, logs what its plots show, resumes, and means what its name says."""

import json
import math
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from benchmarks.stage_table import TRAINABLE
from core.job.rules import REWARD_FUNCTIONS
from core.training.contract.stages import STAGES
from tests.builders.paths import DEMO
from tests.builders.training_runs import (
    FINISHED,
    error_of,
    lines_of,
    losses_of,
    make_stage_run,
    result_is_usable,
    status_of,
    train,
    train_in_two_parts,
    training_lines,
    values_of,
    write_rows,
)
from ui.render.plots import PLOTS

training = pytest.mark.training
pytestmark = pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning")
COMPARES = {"rewards/margins", "rewards/accuracies", "rewards/chosen", "rewards/rejected"}
METRICS: Mapping[str, set[str]] = {
    "sft": {"mean_token_accuracy"},
    "cpt": {"mean_token_accuracy"},
    "reward": {"accuracy", "margin", "mean_reward"},
    "dpo": COMPARES,
    "kto": {"rewards/chosen", "kl"},
    "orpo": COMPARES,
    "cpo": COMPARES,
    "grpo": {
        "reward",
        "rewards/length/mean",
        "rewards/exact_match/mean",
        "completions/mean_length",
        "completions/max_length",
        "frac_reward_zero_std",
    },
    "rloo": {"reward", "rewards/length/mean", "completions/mean_length", "kl"},
}
"""Stage -> metrics that the plots read, under TRL's own names."""
NUM_LAYERS = 4
"""Decoder layers of the demo model."""


# Every stage


@pytest.fixture(scope="module", params=TRAINABLE)
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run of each stage, with one sample question."""
    fields = {"num_samples": 1, "eval_fraction": 0.1 if request.param == "dpo" else 0}
    folder = tmp_path_factory.mktemp(request.param)
    run = make_stage_run(folder / "run", request.param, **fields)
    assert train(run) == FINISHED, status_of(run)["error"]
    return run


def stage_of(run: Path) -> str:
    return str(json.loads((run / "job.json").read_text())["stage"])


@training
def test_every_stage_logs_finite_losses(finished: Path) -> None:
    losses = list(losses_of(finished).values())
    assert [math.isfinite(loss) for loss in losses] == [True, True, True]


@training
def test_every_stage_has_a_gradient(finished: Path) -> None:
    assert max(line.get("grad_norm", 0) for line in lines_of(finished)) > 0


@training
def test_every_stage_logs_what_its_plots_show(finished: Path) -> None:
    assert METRICS[stage_of(finished)] <= set(training_lines(finished)[-1])


@training
@pytest.mark.parametrize("name", ["num_tokens", "tokens_per_second"])
def test_every_stage_counts_its_tokens(finished: Path, name: str) -> None:
    assert training_lines(finished)[-1][name] > 0


@training
def test_every_stage_answers_samples_before_and_after(finished: Path) -> None:
    if STAGES[stage_of(finished)].head == "score":
        assert not (finished / "samples.jsonl").exists(), "a reward model writes no answers"
    else:
        assert {line["step"] for line in lines_of(finished, "samples.jsonl")} >= {0, 3}


@training
def test_the_result_of_every_stage_is_usable(finished: Path) -> None:
    assert result_is_usable(finished)


@pytest.mark.parametrize("stage", TRAINABLE)
def test_the_metrics_of_every_stage_are_plotted(stage: str) -> None:
    assert METRICS[stage] <= {line.key for plot in PLOTS.values() for line in plot.lines}


def test_every_built_in_reward_has_a_curve() -> None:
    curves = [line.key for line in PLOTS["rewards_by_function"].lines]
    assert curves == [f"rewards/{name}/mean" for name in (*REWARD_FUNCTIONS, "reward_model")]


@training
def test_every_trainable_stage_has_a_builder() -> None:
    from core.training.trainers import builders

    assert list(builders.BUILDERS) == TRAINABLE


@training
@pytest.mark.parametrize("stage", ["orpo", pytest.param("cpo", marks=pytest.mark.slow)])
def test_the_probe_does_not_count_tokens_of_preferences(
    tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from core.training.loop import monitor

    plain = make_stage_run(tmp_path / "plain", stage, max_steps=2)
    probed = make_stage_run(tmp_path / "probed", stage, max_steps=2)
    assert train(plain) == FINISHED
    monkeypatch.setattr(monitor, "has_limited_memory", lambda: True)
    assert train(probed) == FINISHED
    assert "probe: 4 rows" in capsys.readouterr().out
    for name in ("loss", "num_tokens"):
        assert values_of(probed, name) == values_of(plain, name)


@training
@pytest.mark.parametrize(
    "stage",
    [
        "kto",
        pytest.param("grpo", marks=pytest.mark.slow),
        pytest.param("orpo", marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_has_the_losses_of_one_never_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    whole = make_stage_run(tmp_path / "whole", stage, max_steps=5)
    halved = make_stage_run(tmp_path / "halved", stage, max_steps=5)
    assert train(whole) == FINISHED
    train_in_two_parts(halved, 2, monkeypatch)
    assert losses_of(halved) == losses_of(whole)


@training
@pytest.mark.parametrize("stage", [stage for stage in TRAINABLE if stage not in ("sft", "cpt")])
def test_rows_that_are_all_too_long_are_refused(tmp_path: Path, stage: str) -> None:
    run = make_stage_run(tmp_path / "run", stage, max_length=8, max_completion_length=4)
    expected = "No row is left to learn from: within max_length 8 there is no answer."
    assert error_of(run) == expected


# What each stage means


@training
def test_dpo_gives_the_losses_of_a_bare_script(tmp_path: Path) -> None:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    run = make_stage_run(tmp_path / "run", "dpo", gradient_checkpointing=False)
    assert train(run) == FINISHED
    # fmt: off
    args = DPOConfig(
        output_dir=str(tmp_path / "bare"), save_strategy="no", max_steps=3, learning_rate=1e-3,
        per_device_train_batch_size=4, max_length=256, seed=42, lr_scheduler_type="cosine",
        warmup_steps=0.03, weight_decay=0.0, logging_steps=1, use_cpu=True, bf16=False,
        gradient_checkpointing=False, report_to="none", disable_tqdm=True,
    )
    # fmt: on
    bare = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(DEMO / "model", dtype=torch.float32),
        args=args,
        train_dataset=Dataset.from_list(lines_of(run, "data/train.jsonl")),
        processing_class=AutoTokenizer.from_pretrained(DEMO / "model"),
        peft_config=LoraConfig(
            r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )
    bare.train()
    losses = [line["loss"] for line in bare.state.log_history if "loss" in line]
    assert list(losses_of(run).values()) == pytest.approx(losses, abs=1e-6)


@training
def test_continued_pretraining_learns_every_token(tmp_path: Path) -> None:
    cpt = make_stage_run(tmp_path / "cpt", "cpt", packing=False)
    sft = make_stage_run(tmp_path / "sft", "sft", assistant_only_loss=False)
    assert (train(cpt), train(sft)) == (FINISHED, FINISHED)
    assert losses_of(cpt) == losses_of(sft)


@training
@pytest.mark.parametrize("packing", [True, False])
def test_plain_texts_train(tmp_path: Path, packing: bool) -> None:
    run = make_stage_run(tmp_path / "run", "cpt", packing=packing, max_steps=2)
    write_rows(run, *[{"text": "Measure twice, cut once. " * 5}] * 8)
    assert train(run) == FINISHED
    assert len(losses_of(run)) == 2


@training
def test_without_shuffling_rows_keep_the_order_of_the_file(tmp_path: Path) -> None:
    fields = {"shuffle": False, "per_device_train_batch_size": 1, "max_steps": 4}
    run = make_stage_run(tmp_path / "run", "sft", **fields)
    write_rows(run, *[{"prompt": "hi " * number, "completion": "yes"} for number in (9, 2, 7, 4)])
    assert train(run) == FINISHED
    lengths = [later - earlier for earlier, later in pairwise([0, *values_of(run, "num_tokens")])]
    shortest_first = sorted(range(4), key=lambda index: lengths[index])
    assert shortest_first == [1, 3, 2, 0]


@training
@pytest.mark.parametrize(
    ("fields", "has_likelihood"), [({"loss_type": "simpo", "beta": 2.0}, False), ({}, True)]
)
def test_simpo_has_no_likelihood_term(
    tmp_path: Path, fields: dict[str, object], has_likelihood: bool
) -> None:
    run = make_stage_run(tmp_path / "run", "cpo", max_steps=1, **fields)
    assert train(run) == FINISHED
    assert (lines_of(run)[0]["nll_loss"] > 0) == has_likelihood


# Last layers


@training
def test_only_the_last_layer_and_the_norm_train(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    run = make_stage_run(tmp_path / "run", "sft", method="freeze", num_trainable_layers=1)
    assert train(run) == FINISHED
    before = load_file(DEMO / "model" / "model.safetensors")
    after = load_file(run / "output" / "model.safetensors")
    changed = [
        name for name, value in after.items() if not value.equal(before[name].to(value.dtype))
    ]
    last_layer = f"model.layers.{NUM_LAYERS - 1}."
    assert "model.norm.weight" in changed
    assert [name for name in changed if not name.startswith((last_layer, "model.norm."))] == []


@training
def test_frozen_layers_are_computed_once_per_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from core.training.model import load

    passes: Counter[int] = Counter()
    train_last_layers = load.train_last_layers

    def freeze_and_count(model: Any, num_layers: int) -> None:
        train_last_layers(model, num_layers)
        for index, layer in enumerate(model.model.layers):
            layer.input_layernorm.register_forward_pre_hook(
                lambda *_, index=index: passes.update([index])
            )

    monkeypatch.setattr(load, "train_last_layers", freeze_and_count)
    fields = {"method": "freeze", "num_trainable_layers": 1, "gradient_checkpointing": True}
    run = make_stage_run(tmp_path / "run", "sft", max_steps=3, **fields)
    assert train(run) == FINISHED
    first, last_frozen, trained = passes[0], passes[NUM_LAYERS - 2], passes[NUM_LAYERS - 1]
    assert first == last_frozen
    assert trained - last_frozen == 3, "the layer that trains is recomputed in each step"
