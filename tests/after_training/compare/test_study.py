"""What varies between the runs of a comparison, and what does not."""

import time
from dataclasses import replace

import pytest

from core.after_training.compare import Study, plan_variants
from core.after_training.compare.study import Budget
from core.job import SpecError
from core.models import demo_fields
from core.speed import RowStatistics

DEMO = dict(demo_fields())


def fields_by_method(study: Study) -> dict[str, dict[str, object]]:
    return {point.method: dict(study.fields_of(point)) for point in study.points()}


def test_methods_differ_in_what_they_need_alone() -> None:
    found = plan_variants(Study.parse(DEMO, ["full", "lora"]))
    full, lora = (each.resolved.job.model_dump() for each in found if each.resolved)
    differing = {name for name in full if full[name] != lora[name]}
    assert differing == {"method", "learning_rate"}


def test_weights_take_a_tenth_of_the_learning_rate_of_an_adapter() -> None:
    fields = fields_by_method(Study.parse({**DEMO, "learning_rate": "1e-3"}, ["full", "lora"]))
    assert fields["lora"]["learning_rate"] == 1e-3
    assert fields["full"]["learning_rate"] == 1e-4


def test_a_learning_rate_on_an_axis_is_taken_as_it_is() -> None:
    study = Study.parse(DEMO, ["full", "lora"], {"learning_rate": ["1e-3"]})
    rates = {fields["learning_rate"] for fields in fields_by_method(study).values()}
    assert rates == {1e-3}


def test_a_complete_job_file_follows_the_defaults_of_each_method() -> None:
    job = {"model": "demo", "dataset": "demo", "method": "lora", "optim": "adamw_torch_fused"}
    fields = fields_by_method(Study.parse(job, ["lora", "qlora"]))
    assert fields["qlora"]["optim"] == "paged_adamw_8bit"


def test_every_value_of_every_axis_is_combined() -> None:
    axes = {"learning_rate": ["1e-3", "2e-3", "5e-3"], "lora_r": ["8", "32"]}
    labels = [point.label for point in Study.parse(DEMO, (), axes).points()]
    assert len(labels) == 6
    assert labels[0] == "LoRA, learning_rate 0.001, lora_r 8"


def test_a_method_is_not_repeated_for_a_setting_that_it_does_not_read() -> None:
    study = Study.parse(DEMO, ["full", "lora"], {"lora_r": ["8", "32"]})
    assert [point.label for point in study.points()] == [
        "Full",
        "LoRA, lora_r 8",
        "LoRA, lora_r 32",
    ]


def test_first_seeds_of_all_points_come_first() -> None:
    found = plan_variants(Study.parse(DEMO, ["full", "lora"], num_seeds=2))
    assert [each.seed for each in found] == [42, 42, 43, 43]


def test_a_budget_of_runs_leaves_the_last_out() -> None:
    study = Study.parse(DEMO, ["full", "lora"], num_seeds=2, budget=Budget(max_runs=3))
    assert [bool(each.left_out) for each in plan_variants(study)] == [False, False, False, True]


def test_a_budget_of_dollars_is_held_against_the_forecast() -> None:
    fields = {"model": "meta-llama/Llama-3.1-8B", "gpu": "h200", "max_steps": 1000}
    study = Study.parse(fields, ["lora", "qlora"], budget=Budget(max_usd=0.01))
    assert {each.left_out[:27] for each in plan_variants(study)} == {"beyond the budget of $0.01:"}


def test_dollars_cannot_be_counted_without_a_price() -> None:
    study = Study.parse({**DEMO, "gpu": "local"}, ["lora"], budget=Budget(max_usd=1))
    with pytest.raises(SpecError, match=r"no price is known for .*--max-hours"):
        plan_variants(study)


def test_a_job_that_is_too_large_says_what_would_make_it_fit() -> None:
    fields = {"model": "meta-llama/Llama-3.1-8B", "gpu": "rtx-3060"}
    full, qlora = plan_variants(Study.parse(fields, ["full", "qlora"]))
    assert full.left_out.startswith("needs ")
    assert full.fix
    assert not qlora.left_out


def test_an_impossible_point_is_left_out_with_the_reason() -> None:
    study = Study.parse(DEMO, ["lora"], {"lora_dropout": ["0.1"], "use_dora": ["true", "false"]})
    assert len(plan_variants(study)) == 2
    study = Study.parse(DEMO, (), {"init_lora_weights": ["default", "loftq"]})
    default, loftq = plan_variants(study)
    assert not default.left_out
    assert "LoftQ" in loftq.left_out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"methods": ["fully"]}, "'fully' is not one of full"),
        ({"axes": {"learning_rat": ["1"]}}, r"did you mean learning_rate\?"),
        ({"axes": {"seed": ["1"]}}, "seed is no axis"),
        ({"axes": {"stage": ["sft", "dpo"]}}, "stage is no axis; compare the stages one by one"),
        ({"axes": {"device": ["0", "1"]}}, "device is no axis; the queue gives"),
        ({"axes": {"lora_r": ["8"]}, "methods": ["full"]}, "lora_r: sft by full does not read"),
        ({"axes": {"lora_r": []}}, "lora_r has no values"),
        ({"axes": {"lora_r": ["many"]}}, "'many' is not a whole number"),
        ({"axes": {"learning_rate": ["1e-5..1e-3"]}}, "is a range; .*--optimize 20"),
        ({"num_seeds": 0}, "0 is too small"),
        ({"num_seeds": 501}, "these are 501 runs"),
    ],
)
def test_a_bad_question_says_what_to_do(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        Study.parse(DEMO, **arguments)


ROWS = RowStatistics(num_rows=1000, mean_tokens=20.0, p95_tokens=60, max_tokens=64)


def test_billions_of_combinations_are_refused_without_going_through_them() -> None:
    many = [str(number) for number in range(1, 90)]
    axes = dict.fromkeys(("lora_r", "warmup_steps", "max_steps", "save_steps"), many)
    begun = time.monotonic()
    with pytest.raises(SpecError, match="these are 62,742,241 runs; give fewer values"):
        Study.parse({"model": "demo", "dataset": "demo"}, ("lora",), axes)
    assert time.monotonic() - begun < 5


def test_rows_of_the_job_say_nothing_of_a_point_with_other_rows() -> None:
    study = Study.parse({**DEMO, "max_length": 64}, (), {"max_length": ["64", "2048"]})
    found = [each.resolved.rows for each in plan_variants(study, ROWS) if each.resolved]
    assert found == [None, None]


def test_rows_of_each_point_are_measured_where_they_differ() -> None:
    study = Study.parse(DEMO, (), {"max_length": ["64", "2048"]})
    found = plan_variants(study, lambda job: replace(ROWS, max_tokens=job.job.max_length))
    longest = [each.resolved.rows.max_tokens for each in found if each.resolved]
    assert longest == [64, 2048]
