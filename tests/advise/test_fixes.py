"""Fixes keep what they promise, and the gentlest come first."""

from dataclasses import replace
from functools import cache

import pytest

from core.advise import Case, Fix, Harm, suggest_fixes
from core.advise.changes import CHANGES, CHECKPOINT_SOME
from core.advise.suggest import MAX_FIXES, MIN_SAVING
from core.job import JobSpec
from core.memory import estimate
from core.models import gpus
from core.speed import RowStatistics, predict_speed
from tests.builders.advice_cases import CPU, GIB, LLAMA_8B, QWEN_1_5B, QWEN_SMALL, card, job_of

ROWS = RowStatistics(5000, mean_tokens=300, p95_tokens=600)
TOO_BIG = {
    "full": (job_of(method="full"), LLAMA_8B, card(24)),
    "no checkpointing": (
        job_of(gradient_checkpointing=False, per_device_train_batch_size=4),
        LLAMA_8B,
        card(24),
    ),
    "eager": (
        job_of(attn_implementation="eager", gradient_checkpointing=False),
        QWEN_SMALL,
        card(12),
    ),
    "dora": (job_of(lora_r=256, use_dora=True, lora_dropout=0.1), LLAMA_8B, card(24)),
    "long": (job_of(method="qlora", max_length=8192), LLAMA_8B, card(12)),
    "hopeless": (job_of(method="full"), LLAMA_8B, card(4)),
}


@cache
def fixes_of(name: str) -> tuple[Fix, ...]:
    return suggest_fixes(*TOO_BIG[name], ROWS)


@pytest.fixture(params=TOO_BIG)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def changed(job: JobSpec, fix: Fix) -> JobSpec:
    return JobSpec.parse({**job.model_dump(), **fix.change})


def titles(fixes: tuple[Fix, ...]) -> list[str]:
    return [fix.title for fix in fixes]


def fields_of(fixes: tuple[Fix, ...]) -> set[str]:
    return {field for fix in fixes for field in fix.change}


def test_a_fix_shows_the_estimate_of_the_changed_job(name: str) -> None:
    job, shape, gpu = TOO_BIG[name]
    for fix in fixes_of(name):
        after = estimate(changed(job, fix), shape, gpu)
        assert (fix.total_bytes, fix.verdict) == (after.total_bytes, after.verdict)


def test_a_fix_saves_enough_to_be_worth_a_button(name: str) -> None:
    before = estimate(*TOO_BIG[name]).total_bytes
    for fix in fixes_of(name):
        assert fix.saves_bytes == before - fix.total_bytes
        assert fix.saves_bytes > MIN_SAVING * before


def test_a_fix_changes_every_field_that_it_names(name: str) -> None:
    job = TOO_BIG[name][0]
    for fix in fixes_of(name):
        assert fix.change
        assert all(getattr(job, field) != value for field, value in fix.change.items())


def test_no_fix_changes_the_rows_of_an_optimizer_step(name: str) -> None:
    job = TOO_BIG[name][0]
    rows_per_step = {changed(job, fix).effective_batch_size for fix in fixes_of(name)}
    assert rows_per_step == {job.effective_batch_size}


def test_a_slowdown_is_the_ratio_of_the_forecast_hours(name: str) -> None:
    job, shape, gpu = TOO_BIG[name]
    before = predict_speed(job, shape, gpu, ROWS)
    assert before
    assert before.hours
    for fix in fixes_of(name):
        after = predict_speed(changed(job, fix), shape, gpu, ROWS)
        assert after
        assert after.hours
        assert fix.slowdown == pytest.approx(after.hours / before.hours)


def test_there_are_few_fixes(name: str) -> None:
    assert 0 < len(fixes_of(name)) <= MAX_FIXES


def test_fixes_that_make_it_fit_come_first(name: str) -> None:
    fits = [fix.fits for fix in fixes_of(name)]
    assert fits == sorted(fits, reverse=True)


def test_the_gentlest_fix_comes_first(name: str) -> None:
    harms = [fix.harm for fix in fixes_of(name) if fix.fits]
    assert harms == sorted(harms)


def test_every_job_that_can_be_made_to_fit_gets_a_fix_that_fits(name: str) -> None:
    assert fixes_of(name)[0].fits is (name != "hopeless")


def test_fixes_save_memory(name: str) -> None:
    assert {fix.saves for fix in fixes_of(name)} == {"memory"}


def test_an_exact_fix_costs_time_only() -> None:
    [exact] = [fix for fix in fixes_of("no checkpointing") if fix.title == "Checkpoint activations"]
    assert exact.change == {"gradient_checkpointing": True}
    assert exact.harm == Harm.NONE
    assert exact.slowdown
    assert 1.2 < exact.slowdown < 1.5


def test_the_mildest_variant_that_fits_is_proposed() -> None:
    lengths = [fix.change for fix in fixes_of("long") if set(fix.change) == {"max_length"}]
    assert lengths == [{"max_length": 4096}]


def test_the_length_of_most_rows_is_one_of_the_lengths() -> None:
    fixes = suggest_fixes(job_of(method="qlora", max_length=1024), LLAMA_8B, card(7.5), ROWS)
    assert "Max length 640" in titles(fixes)


@pytest.mark.parametrize(("rate", "expected"), [(2e-5, 2e-4), (3e-5, 3e-5)])
def test_a_default_learning_rate_moves_with_the_method(rate: float, expected: float) -> None:
    job = job_of(method="full", learning_rate=rate)
    fixes = suggest_fixes(job, LLAMA_8B, card(24))
    [lora] = [fix for fix in fixes if fix.title == "LoRA instead of full"]
    assert changed(job, lora).learning_rate == expected


def test_a_fix_names_the_method_that_it_leaves() -> None:
    fixes = suggest_fixes(job_of(method="freeze"), LLAMA_8B, card(24))
    assert "LoRA instead of last layers" in titles(fixes)
    assert "LoRA instead of full" not in titles(fixes)


def test_changes_are_combined_where_no_single_one_is_enough() -> None:
    job = job_of(method="full", dtype="float32")
    best = suggest_fixes(job, QWEN_1_5B, card(12))[0]
    assert best.fits
    assert best.harm == Harm.SLIGHT
    assert best.change == {"optim": "adamw_8bit", "dtype": "auto"}
    assert best.title == "8-bit optimizer + 16-bit weights"


@pytest.mark.parametrize(("room", "is_tight"), [(1.01, True), (1.5, False)])
def test_only_a_tight_job_is_offered_to_save_memory(room: float, is_tight: bool) -> None:
    job = job_of(method="qlora")
    total_bytes = estimate(job, LLAMA_8B, card(24)).total_bytes
    fixes = suggest_fixes(job, LLAMA_8B, card(room * total_bytes / GIB))
    assert any(fix.saves == "memory" for fix in fixes) is is_tight


def test_a_second_copy_of_the_weights_can_be_avoided() -> None:
    fixes = suggest_fixes(job_of(stage="dpo", method="full"), QWEN_SMALL, card(4), ROWS)
    assert "precompute_ref_log_probs" in fields_of(fixes)


def test_activations_of_long_rows_can_be_offloaded() -> None:
    one_row = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}
    job = job_of(method="qlora", max_length=32768, **one_row)
    assert "activation_offloading" in fields_of(suggest_fixes(job, LLAMA_8B, card(18), ROWS))


def test_a_processor_is_offered_nothing_that_needs_a_card() -> None:
    small = replace(CPU, capacity_bytes=GIB)
    assert "activation_offloading" not in fields_of(
        suggest_fixes(job_of(), QWEN_SMALL, small, ROWS)
    )


def test_compiled_layers_can_keep_a_share() -> None:
    job = job_of(torch_compile=True, gradient_checkpointing=False)
    fixes = suggest_fixes(job, LLAMA_8B, card(24), ROWS)
    assert "activation_memory_budget" in fields_of(fixes)


def test_shorter_answers_are_a_fix_where_answers_are_drawn() -> None:
    [shorter] = [change for change in CHANGES if change.title.startswith("Answers of")]
    job = job_of(stage="grpo", max_length=4096, max_completion_length=2048)
    needed_gib = estimate(job, QWEN_SMALL, card(24)).total_bytes / GIB
    case = Case(job, QWEN_SMALL, card(needed_gib * 0.9), ROWS)
    assert shorter.fitting_case(case).job.max_completion_length < 2048


def test_shorter_answers_are_no_fix_elsewhere(name: str) -> None:
    assert "max_completion_length" not in fields_of(fixes_of(name))


def test_fewer_layers_are_checkpointed_before_all_are() -> None:
    case = Case(job_of(gradient_checkpointing=False), LLAMA_8B, card(24))
    numbers = [each.job.checkpoint_every_n_layers for each in CHECKPOINT_SOME.cases(case)]
    assert numbers == [4, 3, 2]


def test_a_change_that_the_job_refuses_is_not_proposed() -> None:
    fixes = suggest_fixes(job_of(init_lora_weights="pissa"), LLAMA_8B, card(12))
    assert fixes
    assert "method" not in fields_of(fixes)


def test_a_card_of_unknown_speed_gets_fixes_without_a_slowdown() -> None:
    job, shape, gpu = TOO_BIG["full"]
    fixes = suggest_fixes(job, shape, replace(gpu, flops=0.0))
    assert {fix.slowdown for fix in fixes} == {None}


def test_json_holds_the_fields_of_the_command_line() -> None:
    entry = fixes_of("full")[0].to_json()
    names = {"change", "total_bytes", "saves_bytes", "why", "title", "slowdown", "harm"}
    assert names <= set(entry)
    assert type(entry["change"]) is dict
    assert entry["harm"] == "real"


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.title.split("{")[0])
def test_the_texts_of_a_change_name_fields_of_the_job(change) -> None:
    title, why = change.title.format(job=JobSpec()), change.why.format(job=JobSpec())
    assert len(title) < 40
    assert why.endswith(".")
    assert why.count(".") == 1


@pytest.mark.parametrize("gpu", [gpus()["rtx-4090"], CPU], ids=["card", "processor"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.title.split("{")[0])
def test_a_change_keeps_the_values_of_the_user(change, gpu) -> None:
    case = Case(job_of(), LLAMA_8B, gpu, ROWS)
    everything = frozenset(JobSpec.model_fields)
    assert all(each.job == case.job for each in change.cases(case, everything))
