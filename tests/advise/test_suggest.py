"""Proposals: what they promise is what the estimate says, and the gentlest come first."""

from dataclasses import replace
from functools import cache

import pytest

from core.advise import (
    IDEAS,
    REMEDIES,
    Case,
    Fix,
    Harm,
    largest_batch,
    suggest_fixes,
    use_the_room,
    what_fits,
)
from core.job import JobSpec
from core.memory import estimate
from core.models import Gpu, ModelShape, gpus, models
from core.speed import RowStatistics, predict_speed

GIB = 2**30
SHAPE = models()["meta-llama/Llama-3.1-8B"].shape
SMALL = models()["Qwen/Qwen2.5-0.5B"].shape
ROWS = RowStatistics(5000, mean_tokens=300, p95_tokens=600)


def card(capacity_gib: float) -> Gpu:
    """An RTX 4090 with another memory."""
    return replace(gpus()["rtx-4090"], capacity_bytes=int(capacity_gib * GIB))


def changed(job: JobSpec, fix: Fix) -> JobSpec:
    return JobSpec.parse({**job.model_dump(), **fix.change})


def job_of(**fields: object) -> JobSpec:
    return JobSpec.parse(fields)


TOO_BIG = {
    "full": (job_of(method="full"), SHAPE, card(24)),
    "no checkpointing": (
        job_of(gradient_checkpointing=False, per_device_train_batch_size=4),
        SHAPE,
        card(24),
    ),
    "eager": (job_of(attn_implementation="eager", gradient_checkpointing=False), SMALL, card(12)),
    "dora": (job_of(lora_r=256, use_dora=True, lora_dropout=0.1), SHAPE, card(24)),
    "long": (job_of(method="qlora", max_length=8192), SHAPE, card(12)),
    "hopeless": (job_of(method="full"), SHAPE, card(4)),
}


@cache
def fixes_of(name: str) -> tuple[Fix, ...]:
    return suggest_fixes(*TOO_BIG[name], ROWS)


@pytest.fixture(params=TOO_BIG)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_fix_shows_the_estimate_of_the_changed_job(name: str) -> None:
    job, shape, gpu = TOO_BIG[name]
    before = estimate(job, shape, gpu)
    assert fixes_of(name)
    for fix in fixes_of(name):
        after = estimate(changed(job, fix), shape, gpu)
        assert (fix.total_bytes, fix.verdict) == (after.total_bytes, after.verdict)
        assert fix.saves_bytes == before.total_bytes - after.total_bytes > 0.01 * before.total_bytes


def test_a_fix_changes_only_what_it_names(name: str) -> None:
    job = TOO_BIG[name][0]
    for fix in fixes_of(name):
        assert fix.change
        assert all(getattr(job, field) != value for field, value in fix.change.items())


def test_no_fix_changes_the_rows_of_an_optimizer_step(name: str) -> None:
    job = TOO_BIG[name][0]
    assert {changed(job, fix).effective_batch_size for fix in fixes_of(name)} == {
        job.effective_batch_size
    }


def test_a_slowdown_is_the_ratio_of_the_forecast_hours(name: str) -> None:
    job, shape, gpu = TOO_BIG[name]
    before = predict_speed(job, shape, gpu, ROWS)
    for fix in fixes_of(name):
        after = predict_speed(changed(job, fix), shape, gpu, ROWS)
        assert before and after and before.hours and after.hours
        assert fix.slowdown == pytest.approx(after.hours / before.hours)


def test_what_makes_it_fit_comes_first_and_the_gentlest_before_it(name: str) -> None:
    fixes = fixes_of(name)
    assert len(fixes) <= 6
    assert [fix.fits for fix in fixes] == sorted((fix.fits for fix in fixes), reverse=True)
    harms = [fix.harm for fix in fixes if fix.fits]
    assert harms == sorted(harms)


def test_every_job_that_can_be_made_to_fit_gets_a_fix_that_fits(name: str) -> None:
    assert fixes_of(name)[0].fits == (name != "hopeless")


def test_the_exact_fix_comes_before_one_that_trains_something_else() -> None:
    fixes = fixes_of("no checkpointing")
    [exact] = [fix for fix in fixes if fix.title == "Checkpoint activations"]
    assert exact.change == {"gradient_checkpointing": True} and exact.harm == Harm.NONE
    assert exact.slowdown and 1.2 < exact.slowdown < 1.5
    assert fixes.index(exact) < min(
        place for place, fix in enumerate(fixes) if fix.harm == Harm.REAL
    )


def test_the_mildest_variant_that_fits_is_proposed() -> None:
    lengths = [
        fix.change["max_length"] for fix in fixes_of("long") if set(fix.change) == {"max_length"}
    ]
    assert lengths == [4096]


def test_the_length_of_most_rows_is_one_of_the_lengths() -> None:
    fixes = suggest_fixes(job_of(method="qlora", max_length=1024), SHAPE, card(7.5), ROWS)
    assert "Max length 640" in [fix.title for fix in fixes]


def test_leaving_full_training_takes_the_learning_rate_along_unless_it_was_set() -> None:
    for rate, expected in ((2e-5, 2e-4), (3e-5, 3e-5)):
        job = job_of(method="full", learning_rate=rate)
        [lora] = [
            fix
            for fix in suggest_fixes(job, SHAPE, card(24))
            if fix.title == "LoRA instead of full"
        ]
        assert changed(job, lora).learning_rate == expected


def test_a_fix_names_the_method_that_it_leaves() -> None:
    titles = [fix.title for fix in suggest_fixes(job_of(method="freeze"), SHAPE, card(24))]
    assert "LoRA instead of last layers" in titles and "LoRA instead of full" not in titles


def test_where_no_single_change_is_enough_the_needed_ones_are_combined() -> None:
    job = job_of(method="full", dtype="float32")
    best = suggest_fixes(job, models()["Qwen/Qwen2.5-1.5B"].shape, card(12))[0]
    assert best.fits and best.harm == Harm.SLIGHT
    assert best.change == {"optim": "adamw_8bit", "dtype": "auto"}
    assert best.title == "8-bit optimizer + 16-bit weights"


def test_a_tight_job_gets_fixes_and_a_roomy_one_none() -> None:
    job = job_of(method="qlora")
    total_gib = estimate(job, SHAPE, card(24)).total_bytes / GIB
    assert suggest_fixes(job, SHAPE, card(total_gib * 1.01))
    assert not suggest_fixes(job, SHAPE, card(total_gib * 1.5))


def fields_of(fixes: tuple[Fix, ...]) -> set[str]:
    return {field for fix in fixes for field in fix.change}


def test_a_second_copy_of_the_weights_can_be_asked_beforehand() -> None:
    fixes = suggest_fixes(job_of(stage="dpo", method="full"), SMALL, card(4), ROWS)
    assert "precompute_ref_log_probs" in fields_of(fixes)


def test_activations_of_long_rows_can_wait_in_main_memory() -> None:
    job = job_of(
        method="qlora",
        max_length=32768,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
    )
    assert "activation_offloading" in fields_of(suggest_fixes(job, SHAPE, card(18), ROWS))


def test_a_processor_is_offered_nothing_that_needs_a_card() -> None:
    cpu = replace(card(1), compute_capability=(0, 0), supports_bf16=False)
    assert "activation_offloading" not in fields_of(suggest_fixes(job_of(), SMALL, cpu, ROWS))


def test_shorter_answers_are_a_fix_where_answers_are_drawn() -> None:
    job = job_of(stage="grpo", max_length=4096, max_completion_length=2048)
    needed_gib = estimate(job, SMALL, card(24)).total_bytes / GIB
    titles = [remedy for remedy in REMEDIES if remedy.title.startswith("Answers of")]
    case = Case(job, SMALL, card(needed_gib * 0.9), ROWS)
    assert titles[0].cure(case).job.max_completion_length < 2048
    assert titles[0].cure(replace(case, job=job_of())).job == job_of()


def test_fewer_layers_are_checkpointed_before_all_are() -> None:
    [remedy] = [remedy for remedy in REMEDIES if "layer of" in remedy.title]
    changes = list(remedy.variants(Case(job_of(gradient_checkpointing=False), SHAPE, card(24))))
    assert [change["checkpoint_every_n_layers"] for change in changes] == [4, 3, 2]


def test_a_change_that_the_job_refuses_is_not_proposed() -> None:
    fixes = suggest_fixes(job_of(init_lora_weights="pissa"), SHAPE, card(12))
    assert not [fix for fix in fixes if "method" in fix.change]


def test_a_card_of_unknown_speed_gets_fixes_without_a_slowdown() -> None:
    fixes = suggest_fixes(*TOO_BIG["full"][:2], replace(card(24), flops=0.0))
    assert fixes and {fix.slowdown for fix in fixes} == {None}


def test_json_holds_what_the_command_line_promises() -> None:
    told = fixes_of("full")[0].to_json()
    assert {"change", "total_bytes", "saves_bytes", "why", "title", "slowdown", "harm"} <= set(told)
    assert type(told["change"]) is dict and told["harm"] == "real"


@pytest.mark.parametrize(
    "remedy", (*REMEDIES, *IDEAS), ids=lambda remedy: remedy.title.split("{")[0]
)
def test_the_words_of_a_remedy_name_fields_of_the_job(remedy: object) -> None:
    title, why = (getattr(remedy, name).format(job=JobSpec()) for name in ("title", "why"))
    assert len(title) < 40 and why.endswith(".") and why.count(".") == 1


# Room to spare

ROOMY = {
    "lora": (job_of(), SHAPE, gpus()["h100"]),
    "one row at once": (
        job_of(method="qlora", per_device_train_batch_size=1),
        SHAPE,
        gpus()["h200"],
    ),
    "short rows": (job_of(max_length=512), SMALL, gpus()["rtx-4090"]),
}


@pytest.mark.parametrize("name", ROOMY)
def test_an_idea_still_fits_and_is_faster(name: str) -> None:
    job, shape, gpu = ROOMY[name]
    ideas = use_the_room(job, shape, gpu, ROWS)
    slowdowns = [idea.slowdown or 9 for idea in ideas]
    assert 1 <= len(ideas) <= 3
    assert slowdowns == sorted(slowdowns) and slowdowns[-1] <= 0.97
    for idea in ideas:
        assert estimate(changed(job, idea), shape, gpu).verdict == "fits"
        assert changed(job, idea).effective_batch_size == job.effective_batch_size


def test_room_is_used_by_keeping_activations_and_the_base() -> None:
    changes = {field for idea in use_the_room(*ROOMY["one row at once"]) for field in idea.change}
    assert {"gradient_checkpointing", "method", "per_device_train_batch_size"} <= changes


def test_activations_are_kept_with_a_smaller_batch_where_the_same_has_no_room() -> None:
    job = job_of(per_device_train_batch_size=8, gradient_accumulation_steps=1)
    [kept] = [
        idea
        for idea in use_the_room(job, SHAPE, gpus()["h100"])
        if "gradient_checkpointing" in idea.change
    ]
    assert int(str(kept.change["per_device_train_batch_size"])) < 8


def test_short_rows_are_joined_where_that_is_faster() -> None:
    job = job_of(per_device_train_batch_size=16, gradient_accumulation_steps=1)
    [joined] = [
        idea
        for idea in use_the_room(job, SMALL, gpus()["rtx-4090"], ROWS)
        if "packing" in idea.change
    ]
    assert joined.change["attn_implementation"] == "varlen"
    assert joined.harm == Harm.SLIGHT and joined.slowdown and joined.slowdown < 0.8


def test_layers_that_are_checkpointed_for_nothing_are_kept() -> None:
    job = job_of(method="qlora", per_device_train_batch_size=1, gradient_accumulation_steps=4)
    ideas = use_the_room(job, SHAPE, card(15))
    assert {"checkpoint_every_n_layers"} in [set(idea.change) for idea in ideas]


def test_a_job_that_does_not_fit_has_no_room_to_use() -> None:
    assert not use_the_room(*TOO_BIG["full"])


def test_without_a_forecast_nothing_is_called_faster() -> None:
    assert not use_the_room(job_of(), SHAPE, replace(gpus()["h100"], flops=0.0))


# The largest batch


@pytest.mark.parametrize(
    ("fields", "shape", "capacity_gib"),
    [
        ({}, SHAPE, 48),
        ({"method": "qlora"}, SHAPE, 16),
        ({"attn_implementation": "eager"}, SMALL, 40),
    ],
)
def test_the_largest_batch_fits_and_one_more_does_not(
    fields: dict[str, object], shape: ModelShape, capacity_gib: float
) -> None:
    gpu, job = card(capacity_gib), job_of(**fields)
    batch = largest_batch(job, shape, gpu)
    assert batch
    for size, fits in ((batch, True), (batch + 1, False)):
        one = job.model_copy(update={"per_device_train_batch_size": size})
        assert (estimate(one, shape, gpu).verdict == "fits") == fits


def test_a_larger_card_takes_a_larger_batch() -> None:
    batches = [
        largest_batch(job_of(method="qlora"), SHAPE, card(size)) or 0 for size in (4, 8, 12, 24, 96)
    ]
    assert batches == sorted(batches)
    assert batches[0] == 0 < batches[-1]


def test_a_batch_is_never_larger_than_a_job_may_ask_for() -> None:
    assert largest_batch(job_of(max_length=8), SMALL, card(4000)) == 4096


def test_the_table_has_a_cell_for_every_model_method_and_card() -> None:
    chosen = [models()["Qwen/Qwen2.5-0.5B"], models()["meta-llama/Llama-3.1-8B"]]
    cells = what_fits(chosen, ("full", "qlora"), [gpus()["rtx-4090"]])
    assert [(cell.model, cell.method) for cell in cells] == [
        (m.id, way) for m in chosen for way in ("full", "qlora")
    ]
    assert cells[2].batch is None and (cells[1].batch or 0) > (cells[3].batch or 0) > 0
