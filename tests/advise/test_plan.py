"""Plans: they fit, they are no slower on a larger card, they leave alone what is not theirs, and they say why."""

from dataclasses import replace
from itertools import pairwise

import pytest

from core.advise import PLANNED_FIELDS, Case, Harm, Plan, plan
from core.advise.search import CHECKPOINT_ALL, ONE_LAYER_OF, compile_seconds, seconds_per_token
from core.job import JobSpec
from core.memory import estimate
from core.models import Gpu, ModelShape, gpus, models
from core.speed import RowStatistics
from core.training.contract.methods import METHODS
from core.training.contract.stages import STAGES

GIB = 2**30
LLAMA_8B = models()["meta-llama/Llama-3.1-8B"].shape
QWEN_SMALL = models()["Qwen/Qwen2.5-0.5B"].shape
GEMMA_2 = models()["google/gemma-2-2b"].shape
SHORT_ROWS = RowStatistics(20_000, mean_tokens=300, p95_tokens=900)
FULL_ROWS = RowStatistics(20_000, mean_tokens=1900, p95_tokens=2048)
CPU = replace(
    gpus()["t4"],
    id="local",
    compute_capability=(0, 0),
    supports_bf16=False,
    capacity_bytes=24 * GIB,
)
MOST_ESTIMATES = 8


def job_of(**fields: object) -> JobSpec:
    return JobSpec.parse({"profile": "fastest", **fields})


def card(capacity_gib: float, name: str = "rtx-4090") -> Gpu:
    """A preset with another memory."""
    return replace(gpus()[name], capacity_bytes=int(capacity_gib * GIB))


def planned(
    job: JobSpec, shape: ModelShape, gpu: Gpu, rows: RowStatistics | None = None
) -> JobSpec:
    return JobSpec.parse({**job.model_dump(), **plan(job, shape, gpu, rows).change})


def case_of(job: JobSpec, shape: ModelShape, gpu: Gpu, rows: RowStatistics | None = None) -> Case:
    return Case(job, shape, gpu, rows)


CASES = {
    "8B lora, 24 GiB": (job_of(), LLAMA_8B, gpus()["rtx-4090"], SHORT_ROWS),
    "8B qlora, T4": (job_of(method="qlora"), LLAMA_8B, gpus()["t4"], SHORT_ROWS),
    "8B full, 80 GiB": (job_of(method="full"), LLAMA_8B, gpus()["a100-80gb"], FULL_ROWS),
    "8B lora, H200": (job_of(), LLAMA_8B, gpus()["h200"], None),
    "0.5B full, 12 GiB": (
        job_of(method="full", max_length=1024),
        QWEN_SMALL,
        gpus()["rtx-3060"],
        SHORT_ROWS,
    ),
    "0.5B dpo": (
        job_of(stage="dpo", num_train_epochs=2),
        QWEN_SMALL,
        gpus()["rtx-4090"],
        SHORT_ROWS,
    ),
    "capped scores": (job_of(), GEMMA_2, gpus()["l40s"], SHORT_ROWS),
    "processor": (job_of(), QWEN_SMALL, CPU, SHORT_ROWS),
    "smallest": (
        job_of(profile="smallest", method="qlora"),
        LLAMA_8B,
        gpus()["rtx-4090"],
        SHORT_ROWS,
    ),
}


@pytest.fixture(params=CASES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# What every plan keeps to


def test_a_plan_fits(name: str) -> None:
    job, shape, gpu, rows = CASES[name]
    assert estimate(planned(job, shape, gpu, rows), shape, gpu).verdict == "fits"


def test_a_plan_fits_wherever_the_smallest_way_does() -> None:
    job = job_of(method="qlora")
    smallest = planned(job_of(method="qlora", profile="smallest"), LLAMA_8B, card(24))
    least_gib = estimate(smallest, LLAMA_8B, card(24)).total_bytes / GIB
    for capacity_gib in (least_gib * 1.08, least_gib * 1.3, least_gib * 2):
        gpu = card(capacity_gib)
        assert estimate(planned(job, LLAMA_8B, gpu), LLAMA_8B, gpu).verdict == "fits"


def test_a_step_sees_as_many_rows_as_before_or_nearly_so_if_they_are_joined(name: str) -> None:
    job, shape, gpu, rows = CASES[name]
    after = planned(job, shape, gpu, rows)
    if not after.packing:
        assert after.effective_batch_size == job.effective_batch_size
    else:
        assert rows and rows.mean_tokens
        seen = after.effective_batch_size * after.max_length / rows.mean_tokens
        assert abs(seen / job.effective_batch_size - 1) <= 1 / 3


def test_a_plan_changes_only_what_it_may(name: str) -> None:
    job, shape, gpu, rows = CASES[name]
    assert set(plan(job, shape, gpu, rows).change) <= PLANNED_FIELDS


def test_a_planned_job_is_planned_the_same_again(name: str) -> None:
    job, shape, gpu, rows = CASES[name]
    once = planned(job, shape, gpu, rows)
    assert planned(once, shape, gpu, rows) == once


def test_a_plan_is_no_slower_than_what_was_asked_for_where_that_fits(name: str) -> None:
    job, shape, gpu, rows = CASES[name]
    if job.profile == "fastest" and estimate(job, shape, gpu).verdict == "fits":
        asked, after = (
            case_of(each, shape, gpu, rows) for each in (job, planned(job, shape, gpu, rows))
        )
        assert seconds_per_token(after) <= 1.02 * seconds_per_token(asked)


def test_every_choice_says_why_in_one_sentence_with_a_number(name: str) -> None:
    for choice in plan(*CASES[name]).choices:
        assert choice.reason.endswith(".") and any(letter.isdigit() for letter in choice.reason), (
            choice
        )
        assert len(choice.reason) < 140 and ". " not in choice.reason, choice


def test_no_choice_harms_more_than_slightly(name: str) -> None:
    for choice in plan(*CASES[name]).choices:
        is_slight = "8bit" in str(choice.value) or (choice.field, choice.value) == ("packing", True)
        assert choice.harm == (Harm.SLIGHT if is_slight else Harm.NONE)


def test_few_estimates_are_made(name: str) -> None:
    job, shape, gpu, rows = CASES[name]
    before = estimate.cache_info().misses
    plan(job.model_copy(update={"lora_r": 24}), shape, gpu, rows)  # nothing of it is remembered
    assert estimate.cache_info().misses - before <= MOST_ESTIMATES


@pytest.mark.parametrize("field", sorted(PLANNED_FIELDS))
def test_what_a_person_has_set_stays(field: str) -> None:
    other = {
        "dtype": "float32",
        "packing": False,
        "attn_implementation": "eager",
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 4,
        "gradient_checkpointing": False,
        "checkpoint_every_n_layers": 3,
        "activation_offloading": True,
        "torch_compile": True,
        "activation_memory_budget": 0.4,
        "optim": "adamw_torch",
        "precompute_ref_log_probs": False,
    }[field]
    job = job_of(**{field: other})
    chosen = plan(job, QWEN_SMALL, gpus()["rtx-4090"], SHORT_ROWS, frozenset({field}))
    after = JobSpec.parse({**job.model_dump(), **chosen.change})
    assert chosen.choices and getattr(after, field) == other
    assert after.packing or after.effective_batch_size == job.effective_batch_size


def test_the_profile_custom_chooses_nothing() -> None:
    assert plan(job_of(profile="custom"), LLAMA_8B, gpus()["h200"], SHORT_ROWS) == Plan()


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_a_plan_that_fits(stage: str) -> None:
    for method in ("full", "qlora"):
        job = job_of(stage=stage, method=method)
        after = planned(job, QWEN_SMALL, gpus()["a100-80gb"], SHORT_ROWS)
        assert estimate(after, QWEN_SMALL, gpus()["a100-80gb"]).verdict == "fits"


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_plan_that_fits(method: str) -> None:
    after = planned(job_of(method=method), QWEN_SMALL, gpus()["rtx-4090"], SHORT_ROWS)
    assert estimate(after, QWEN_SMALL, gpus()["rtx-4090"]).verdict == "fits"


def test_where_nothing_fits_the_plan_is_the_smallest_way() -> None:
    after = planned(job_of(method="full"), LLAMA_8B, card(8))
    assert (after.per_device_train_batch_size, after.optim) == (1, "paged_adamw_8bit")
    assert after.gradient_checkpointing and after.activation_offloading


# A larger card


def rising_seconds(
    job: JobSpec, shape: ModelShape, gpu: Gpu, rows: RowStatistics | None
) -> list[float]:
    """Forecast seconds per token of the plans for the same card with more and more memory, as long as one fits."""
    cards = (
        replace(gpu, capacity_bytes=int(gpu.capacity_bytes * factor))
        for factor in (1, 1.25, 1.6, 2.5)
    )
    plans = [(planned(job, shape, each, rows), each) for each in cards]
    return [
        seconds_per_token(case_of(after, shape, each, rows))
        for after, each in plans
        if estimate(after, shape, each).verdict == "fits"
    ]


@pytest.mark.parametrize("gpu", ["t4", "h100"])
@pytest.mark.parametrize("rows", [None, SHORT_ROWS], ids=["unknown rows", "short rows"])
def test_a_larger_card_never_gets_a_slower_plan(gpu: str, rows: RowStatistics | None) -> None:
    seconds = rising_seconds(job_of(method="qlora"), LLAMA_8B, gpus()[gpu], rows)
    assert seconds and all(later <= earlier for earlier, later in pairwise(seconds))


@pytest.mark.slow
@pytest.mark.parametrize("gpu", gpus())
def test_no_card_of_the_menu_gets_a_slower_plan_with_more_memory(gpu: str) -> None:
    for method, rows in (("lora", FULL_ROWS), ("qlora", SHORT_ROWS)):
        seconds = rising_seconds(job_of(method=method), LLAMA_8B, gpus()[gpu], rows)
        assert all(later <= earlier for earlier, later in pairwise(seconds))


# The choices


def test_activations_are_kept_where_they_fit() -> None:
    after = planned(job_of(), LLAMA_8B, gpus()["h200"], SHORT_ROWS)
    assert not after.gradient_checkpointing and not after.activation_offloading


def test_main_memory_is_not_used_for_what_the_card_has_room_for() -> None:
    short = RowStatistics(311, 42)
    after = planned(job_of(), LLAMA_8B, card(21.5), short)
    assert after.gradient_checkpointing and not after.activation_offloading


def test_fewer_rows_at_once_go_before_computing_activations_again() -> None:
    after = planned(
        job_of(per_device_train_batch_size=16, gradient_accumulation_steps=1),
        LLAMA_8B,
        card(44, "l40s"),
    )
    assert not after.gradient_checkpointing and after.per_device_train_batch_size < 16


def test_a_layer_of_several_is_checkpointed_before_all_are() -> None:
    after = planned(
        job_of(method="qlora"), LLAMA_8B, card(15), RowStatistics(50, 2000)
    )  # too few to compile for
    assert after.gradient_checkpointing and after.checkpoint_every_n_layers > 1


def test_short_rows_are_joined_and_long_ones_are_not() -> None:
    short, full = (
        planned(job_of(), QWEN_SMALL, gpus()["rtx-4090"], rows) for rows in (SHORT_ROWS, FULL_ROWS)
    )
    assert (short.packing, short.attn_implementation) == (True, "varlen")
    assert (full.packing, full.attn_implementation) == (False, "sdpa")


def test_rows_stay_apart_where_one_joined_row_would_hold_too_many() -> None:
    job = job_of(max_length=8192, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    assert not planned(job, QWEN_SMALL, gpus()["rtx-4090"], SHORT_ROWS).packing


def test_preference_pairs_are_never_joined() -> None:
    assert not planned(job_of(stage="dpo"), QWEN_SMALL, gpus()["rtx-4090"], SHORT_ROWS).packing


def test_capped_scores_are_computed_by_the_plain_kernel() -> None:
    assert planned(*CASES["capped scores"]).attn_implementation == "eager"


@pytest.mark.parametrize(
    ("gpu", "method", "dtype"),
    [
        ("h200", "full", "bfloat16"),
        ("t4", "qlora", "float16"),
        ("t4", "full", "float32"),
        ("v100-16gb", "lora", "float16"),
    ],
)
def test_the_precision_is_that_of_the_card(gpu: str, method: str, dtype: str) -> None:
    after = planned(job_of(method=method), QWEN_SMALL, gpus()[gpu], SHORT_ROWS)
    assert after.dtype == dtype
    assert gpu == "h200" or (after.attn_implementation, after.torch_compile) == ("sdpa", False)


@pytest.mark.parametrize(("num_rows", "compiled"), [(50, False), (50_000, True)])
def test_layers_are_compiled_only_for_a_long_run(num_rows: int, compiled: bool) -> None:
    rows = RowStatistics(num_rows, mean_tokens=300)
    assert planned(job_of(), LLAMA_8B, gpus()["a100-80gb"], rows).torch_compile is compiled


def test_a_run_of_unknown_length_is_not_compiled() -> None:
    assert not planned(job_of(), LLAMA_8B, gpus()["a100-80gb"]).torch_compile


def test_a_machine_that_cannot_compile_is_planned_for_without() -> None:
    gpu, rows = (
        replace(gpus()["a100-80gb"], lacks_for_compiling="there is no C compiler"),
        RowStatistics(50_000, 300),
    )
    chosen = plan(job_of(), LLAMA_8B, gpu, rows)
    assert not planned(job_of(), LLAMA_8B, gpu, rows).torch_compile
    assert "Not compiled: there is no C compiler." in [choice.reason for choice in chosen.choices]


def test_compiling_has_its_price_in_the_comparison() -> None:
    job = job_of(max_steps=100)
    eager, compiled = (
        case_of(job.model_copy(update={"torch_compile": on}), LLAMA_8B, gpus()["h100"])
        for on in (0, 1)
    )
    assert compile_seconds(eager) == 0 < compile_seconds(compiled)


def test_compiled_layers_keep_as_much_as_fits_of_their_activations() -> None:
    gpu, rows = gpus()["rtx-4090"], RowStatistics(50_000, mean_tokens=300)
    chosen = plan(job_of(), LLAMA_8B, gpu, rows)
    after = planned(job_of(), LLAMA_8B, gpu, rows)
    assert (
        after.torch_compile
        and not after.gradient_checkpointing
        and 0 < after.activation_memory_budget < 1
    )
    reasons = {choice.field: choice.reason for choice in chosen.choices}
    assert (
        f"{after.activation_memory_budget:.0%}".replace("%", " %")
        in reasons["activation_memory_budget"]
    )
    eager = case_of(
        after.model_copy(update={"torch_compile": False, **CHECKPOINT_ALL}), LLAMA_8B, gpu, rows
    )
    saved = 1 - seconds_per_token(case_of(after, LLAMA_8B, gpu, rows)) / seconds_per_token(eager)
    assert f"save {100 * saved:.0f} %" in reasons["torch_compile"]
    others = (after.model_copy(update=level) for level in (CHECKPOINT_ALL, *ONE_LAYER_OF))
    fitting = [case for job in others if (case := case_of(job, LLAMA_8B, gpu, rows)).fits]
    fastest = min(map(seconds_per_token, fitting))
    assert seconds_per_token(case_of(after, LLAMA_8B, gpu, rows)) < fastest


@pytest.mark.parametrize("field", ["activation_memory_budget", "checkpoint_every_n_layers"])
def test_what_a_way_does_not_look_at_speaks_against_no_way(field: str) -> None:
    job = job_of(method="qlora", **{field: 0.4 if field == "activation_memory_budget" else 3})
    chosen = plan(job, LLAMA_8B, gpus()["rtx-3060"], SHORT_ROWS, frozenset({field}))
    after = case_of(
        JobSpec.parse({**job.model_dump(), **chosen.change}),
        LLAMA_8B,
        gpus()["rtx-3060"],
        SHORT_ROWS,
    )
    assert after.fits and after.job.torch_compile and not after.job.gradient_checkpointing


def test_layers_that_a_person_has_compiled_may_keep_a_share() -> None:
    job = job_of(torch_compile=True)  # for a run of unknown length, which a plan would not compile
    chosen = plan(job, LLAMA_8B, gpus()["rtx-4090"], None, frozenset({"torch_compile"}))
    assert (
        chosen.change["activation_memory_budget"] in (0.9, 0.5)
        and not chosen.change["gradient_checkpointing"]
    )


def test_as_much_is_kept_as_fits_where_logits_take_most_of_the_room() -> None:
    gpu, seconds = gpus()["rtx-4090"], {}
    after = planned(job_of(stage="orpo"), QWEN_SMALL, gpu, SHORT_ROWS)
    for budget in (after.activation_memory_budget, 0.9, 0.5, 0.3):
        case = case_of(
            after.model_copy(update={"activation_memory_budget": budget}),
            QWEN_SMALL,
            gpu,
            SHORT_ROWS,
        )
        seconds |= {budget: seconds_per_token(case)} if case.fits else {}
    assert seconds[after.activation_memory_budget] <= 1.02 * min(seconds.values())


def test_activations_are_kept_where_8_bit_layers_keep_many_of_them_anyway() -> None:
    shape, gpu = models()["Qwen/Qwen2.5-1.5B"].shape, gpus()["l40s"]
    after = planned(job_of(stage="orpo", method="lora-8bit"), shape, gpu, SHORT_ROWS)
    kept = case_of(
        after.model_copy(update={"gradient_checkpointing": False}), shape, gpu, SHORT_ROWS
    )
    assert not after.gradient_checkpointing or not kept.fits


def test_a_budget_that_is_of_no_use_any_more_is_taken_back(name: str) -> None:
    job, shape, gpu, rows = CASES[name]
    after = planned(job.model_copy(update={"activation_memory_budget": 0.3}), shape, gpu, rows)
    assert after.activation_memory_budget == 1 or (
        after.torch_compile and not after.gradient_checkpointing
    )


def test_states_in_8_bits_are_for_where_whole_ones_do_not_fit() -> None:
    shape = models()["Qwen/Qwen2.5-1.5B"].shape
    roomy, narrow = (
        planned(job_of(method="full"), shape, card(size), FULL_ROWS) for size in (24, 12)
    )
    assert (roomy.optim, narrow.optim) == ("adamw_torch_fused", "adamw_8bit")


def test_an_optimizer_that_takes_other_steps_is_left_alone() -> None:
    chosen = plan(job_of(optim="adafactor"), QWEN_SMALL, gpus()["rtx-4090"], SHORT_ROWS)
    assert chosen.choices and "optim" not in chosen.change


@pytest.mark.parametrize(
    ("method", "epochs", "beforehand"), [("lora", 1, False), ("lora", 2, True), ("full", 1, True)]
)
def test_a_reference_that_reads_the_rows_more_than_once_reads_them_beforehand(
    method: str, epochs: int, beforehand: bool
) -> None:
    job = job_of(stage="dpo", method=method, num_train_epochs=epochs)
    assert planned(job, QWEN_SMALL, gpus()["rtx-4090"]).precompute_ref_log_probs is beforehand


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("steps", [10, 20_000])
def test_a_reference_reads_the_rows_beforehand_only_where_that_is_sooner(
    method: str, steps: int
) -> None:
    job = job_of(stage="dpo", method=method, max_steps=steps)
    after = planned(job, QWEN_SMALL, gpus()["rtx-4090"], FULL_ROWS)
    other = after.model_copy(
        update={"precompute_ref_log_probs": not after.precompute_ref_log_probs}
    )
    seconds, others = (
        seconds_per_token(case_of(each, QWEN_SMALL, gpus()["rtx-4090"], FULL_ROWS))
        for each in (after, other)
    )
    assert seconds < others


def test_a_second_copy_of_the_weights_is_told_by_its_size() -> None:
    for gpu, copy_gib in (("t4", "1.8"), ("rtx-4090", "0.9")):
        chosen = plan(job_of(stage="dpo", method="full"), QWEN_SMALL, gpus()[gpu], SHORT_ROWS)
        assert f"second copy ({copy_gib} GiB)" in next(
            c.reason for c in chosen.choices if "copy" in c.reason
        )


def test_kto_keeps_two_rows_at_once() -> None:
    for profile in ("fastest", "smallest"):
        after = planned(
            job_of(stage="kto", profile=profile), LLAMA_8B, gpus()["rtx-4090"], FULL_ROWS
        )
        assert after.per_device_train_batch_size >= 2


def test_a_processor_gets_a_plan_without_anything_that_needs_a_card() -> None:
    after = planned(*CASES["processor"])
    assert (after.dtype, after.optim) == ("float32", "adamw_torch_fused")
    assert not (after.torch_compile or after.activation_offloading)


def test_a_file_without_rows_gets_a_plan_too() -> None:
    assert plan(job_of(), QWEN_SMALL, gpus()["rtx-4090"], RowStatistics(0)).choices


def test_a_card_of_unknown_speed_gets_a_plan_too() -> None:
    after = planned(job_of(), LLAMA_8B, replace(gpus()["h100"], flops=0.0), SHORT_ROWS)
    assert not after.gradient_checkpointing


def test_the_smallest_profile_takes_less_than_the_fastest() -> None:
    _, shape, gpu, rows = CASES["8B qlora, T4"]
    small, fast = (
        planned(job_of(method="qlora", profile=each), shape, gpu, rows)
        for each in ("smallest", "fastest")
    )
    assert estimate(small, shape, gpu).total_bytes < estimate(fast, shape, gpu).total_bytes
    assert (small.per_device_train_batch_size, small.gradient_accumulation_steps) == (1, 16)
    assert small.gradient_checkpointing and small.checkpoint_every_n_layers == 1
    assert (small.optim, small.packing) == ("paged_adamw_8bit", False)


# The reasons


def reasons_of(
    job: JobSpec, shape: ModelShape, gpu: Gpu, rows: RowStatistics | None = None
) -> dict[str, str]:
    return {choice.field: choice.reason for choice in plan(job, shape, gpu, rows).choices}


def test_one_of_anything_is_told_in_the_singular() -> None:
    job = job_of(per_device_train_batch_size=1, gradient_accumulation_steps=1, packing=True)
    said = " ".join(
        reasons_of(job, QWEN_SMALL, gpus()["rtx-4090"], RowStatistics(50, mean_tokens=1.0)).values()
    )
    assert "1 joined row, 1 at once" in said and "Rows of 1 token are joined" in said


def test_a_short_run_is_told_in_seconds() -> None:
    said = reasons_of(job_of(max_steps=2), QWEN_SMALL, gpus()["h100"], FULL_ROWS)
    assert " s: some 100 s of compiling would not pay" in said["torch_compile"]


def test_kto_s_rows_are_compared_with_the_fewest_that_it_can_take() -> None:
    said = reasons_of(job_of(stage="kto"), QWEN_SMALL, gpus()["h100"], SHORT_ROWS)[
        "per_device_train_batch_size"
    ]
    assert said.endswith(" less time than 2 at a time.") and " 0 %" not in said
    two = job_of(stage="kto", per_device_train_batch_size=2, gradient_accumulation_steps=1)
    assert (
        reasons_of(two, QWEN_SMALL, gpus()["h100"])["per_device_train_batch_size"]
        == "An optimizer step sees 2 rows."
    )


def test_the_smallest_way_does_not_say_that_compiling_would_not_pay_where_it_would() -> None:
    said = reasons_of(*CASES["smallest"])["torch_compile"]
    assert "compiled layers would save" in said


def test_rows_that_need_a_mask_are_not_said_to_need_none() -> None:
    gemma, h100 = models()["google/gemma-3-1b-it"].shape, gpus()["h100"]
    assert (
        "and need a mask"
        in reasons_of(job_of(stage="grpo"), QWEN_SMALL, h100, SHORT_ROWS)["attn_implementation"]
    )
    assert (
        "need a mask only in layers"
        in reasons_of(job_of(), gemma, h100, FULL_ROWS)["attn_implementation"]
    )


def test_a_processor_is_not_called_a_card() -> None:
    said = " ".join(reasons_of(job_of(stage="cpt"), QWEN_SMALL, CPU, SHORT_ROWS).values())
    assert "processor" in said and "the card" not in said and "0.0." not in said
