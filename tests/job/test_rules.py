"""Tables of stages and methods, their defaults, and what is refused."""

import pytest

from benchmarks.stage_table import SETTINGS, TRAINABLE, settings_by_axis, stages_by_methods
from core.job import JobSpec, Problem, SpecError
from core.job.rules import REFUSALS, refusals_to_train
from core.training.contract.job import EXTRA_OPTIMIZERS
from core.training.contract.methods import METHODS
from core.training.contract.stages import STAGES, Stage, defaults_of, unused_fields

TRL_TYPES = {
    "language modeling",
    "prompt-completion",
    "preference",
    "unpaired preference",
    "prompt-only",
}
CANNOT_WORK: tuple[dict[str, object], ...] = (
    {"dataset": "a.jsonl", "eval_dataset": "a.jsonl"},
    {"stage": "dpo", "packing": True},
    {"packing": True, "shuffle": False},
    {"max_steps": 0},
    {"stage": "cpt", "assistant_only_loss": True},
    {"stage": "dpo", "assistant_only_loss": False},
    {"stage": "cpo", "loss_type": "apo_zero"},
    {"stage": "dpo", "beta": 0},
    {"stage": "orpo", "precompute_ref_log_probs": True},
    {"stage": "kto", "per_device_train_batch_size": 1},
    {"stage": "grpo", "num_generations": 5},
    {"stage": "rloo", "max_completion_length": 2048},
    {"reward_functions": "kindness"},
    {"stage": "grpo", "reward_functions": ""},
    {"stage": "grpo", "reward_functions": "regex", "reward_pattern": ""},
    {"stage": "grpo", "reward_functions": "regex", "reward_pattern": "(a"},
    {"method": "full", "adapter": "runs/1/output"},
    {"stage": "reward", "adapter": "runs/1/output"},
    {"adapter": "runs/1/output", "init_lora_weights": "gaussian"},
    {"method": "qlora", "init_lora_weights": "pissa"},
    {"method": "lora", "init_lora_weights": "loftq"},
    {"stage": "dpo", "init_lora_weights": "olora"},
    {"init_lora_weights": "pissa", "use_dora": True},
    {"method": "lora-8bit", "use_dora": True},
    {"target_modules": "q_proj,lm_head"},
    {"stage": "reward", "modules_to_save": "lm_head"},
    {"method": "full", "dtype": "float16"},
    {"method": "freeze", "dtype": "float16"},
    {"stage": "cpo", "activation_offloading": True},
    {"method": "qlora", "optim": "galore_adamw"},
    {"warmup_steps": 5, "lr_scheduler_type": "constant"},
    {"warmup_steps": 10, "max_steps": 10},
    {"lr_restart_step": 10, "max_steps": 10},
    {"method": "full", "loraplus_lr_ratio": 16},
    {"stage": "grpo", "neftune_noise_alpha": 5},
    {"stage": "dpo", "label_smoothing_factor": 0.1},
    {"keep_best": "eval_loss", "eval_fraction": 0},
    {"stage": "grpo", "eval_fraction": 0.1, "keep_best": "eval_loss"},
    {"keep_best": "eval_reward"},
    {"keep_best": "eval_loss", "optim": "schedule_free_adamw"},
    {"keep_best": "evalloss", "check_steps": 10},
    {"keep_best": "mine", "check_steps": 10, "check_suites": "identity,folder/others.jsonl"},
    {"keep_best": "mine", "check_suites": "folder/mine.jsonl"},
    {"check_steps": 10, "stage": "reward"},
    {"check_steps": 10, "num_devices": 2},
    {"early_stopping_patience": 3, "eval_fraction": 0},
    {"early_stopping_threshold": 0.01},
    {
        "early_stopping_threshold": 100,
        "early_stopping_patience": 3,
        "keep_best": "identity",
        "check_suites": "identity",
        "check_steps": 10,
    },
)


def broken(**fields: object) -> dict[str, str]:
    """{field: what is wrong; what to do} of a job that is refused."""
    with pytest.raises(SpecError) as caught:
        JobSpec.parse(fields)
    return {problem.field: str(problem) for problem in caught.value.problems}


@pytest.mark.parametrize("stage", STAGES.values(), ids=lambda stage: stage.id)
def test_a_stage_names_known_types_and_fields(stage: Stage) -> None:
    assert stage.title
    assert stage.help.endswith(".")
    assert set(stage.dataset_types) <= TRL_TYPES
    assert {*stage.fields, *stage.defaults, *stage.full_defaults} <= set(JobSpec.model_fields)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_works_with_every_method(stage: str, method: str) -> None:
    job = JobSpec.parse({"stage": stage, "method": method})
    assert {name: getattr(job, name) for name in defaults_of(stage, method)} == dict(
        defaults_of(stage, method)
    )


def test_dpo_learns_slower_with_all_weights() -> None:
    rates = [
        JobSpec.parse({"stage": "dpo", "method": method}).learning_rate
        for method in ("lora", "full", "freeze")
    ]
    assert rates == [5e-6, 5e-7, 5e-7]


def test_a_value_set_by_the_user_wins_over_the_stage() -> None:
    assert JobSpec.parse({"stage": "grpo", "beta": 0.04}).beta == 0.04


@pytest.mark.parametrize("fields", CANNOT_WORK, ids=str)
def test_a_combination_that_cannot_work_is_refused(fields: dict[str, object]) -> None:
    assert set(broken(**fields)) & set(fields)


def test_every_refusal_is_met_and_fills_in_its_message() -> None:
    met = set()
    for fields in CANNOT_WORK:
        complete = (
            dict(defaults_of(str(fields.get("stage", "sft")), str(fields.get("method", "lora"))))
            | fields
        )
        job = JobSpec.model_validate(complete)
        for refusal in REFUSALS:
            if problem := refusal.problem_of(job):
                met.add(refusal)
                assert "{" not in str(problem)
    assert met == set(REFUSALS)


def test_several_problems_are_reported_at_once() -> None:
    assert set(broken(stage="kto", per_device_train_batch_size=1, packing=True)) == {
        "per_device_train_batch_size",
        "packing",
    }


def test_ppo_is_estimated_but_not_trained() -> None:
    told = list(refusals_to_train(JobSpec.parse({"stage": "ppo"})))
    assert told == [
        Problem("stage", "PPO can be estimated, but not trained", "choose grpo or rloo")
    ]
    assert not list(refusals_to_train(JobSpec.parse({"stage": "grpo"})))


def test_an_optimizer_that_needs_a_package_says_which() -> None:
    job = JobSpec.parse({"method": "full", "optim": "galore_adamw"})
    assert (
        next(refusals_to_train(job)).fix
        == f"pip install {EXTRA_OPTIMIZERS['galore_adamw'].package}"
    )


def test_the_tables_name_every_stage_and_every_setting() -> None:
    assert len(list(stages_by_methods())) == len(TRAINABLE) + 2
    assert len(list(settings_by_axis())) == len(SETTINGS) + 2


def test_a_method_and_a_stage_name_the_fields_that_they_read() -> None:
    records = [*METHODS.values(), *STAGES.values()]
    named = {name for record in records for name in record.fields}
    assert named <= JobSpec.model_fields.keys()


@pytest.mark.parametrize(
    ("method", "unused"),
    [
        ("full", {"lora_r", "bnb_4bit_quant_type", "num_trainable_layers"}),
        ("freeze", {"lora_r", "bnb_4bit_quant_type"}),
        ("lora", {"bnb_4bit_quant_type", "num_trainable_layers"}),
        ("qlora", {"num_trainable_layers"}),
    ],
)
def test_what_a_method_does_not_read_is_unused(method: str, unused: set[str]) -> None:
    watched = {"lora_r", "bnb_4bit_quant_type", "num_trainable_layers"}
    assert unused_fields("sft", method) & watched == unused


def test_what_a_stage_does_not_read_is_unused() -> None:
    assert "packing" not in unused_fields("sft", "lora")
    assert "packing" in unused_fields("dpo", "lora")
    assert "beta" not in unused_fields("dpo", "lora")
