"""One total: parts, verdict, reasons and savings of any job speak of the same number."""

import re
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from core.advise import Case, plan, suggest_fixes
from core.advise.reasons import reasons
from core.job import JobSpec
from core.memory import MemoryEstimate, PastRun, estimate
from core.models import Gpu, gpus
from core.training.contract.methods import METHODS
from core.wording import memory_parts, verdict_sentence
from tests.builders.advice_cases import CPU, GIB, LLAMA_8B, QWEN_SMALL, card, fastest, job_of

STAGES = ("sft", "dpo", "kto", "orpo", "reward", "grpo")
OPTIMIZERS = ("adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "sgd")
SHAPES = (LLAMA_8B, QWEN_SMALL)
CARDS = (card(8), card(24), card(80), gpus()["t4"], CPU)
PAGED = {"method": "full", "optim": "paged_adamw_8bit", "per_device_train_batch_size": 1}


@st.composite
def jobs(draw: st.DrawFn) -> JobSpec:
    stage = draw(st.sampled_from(STAGES))
    return job_of(
        stage=stage,
        method=draw(st.sampled_from(list(METHODS))),
        optim=draw(st.sampled_from(OPTIMIZERS)),
        max_length=draw(st.sampled_from((512, 2048, 8192))),
        per_device_train_batch_size=draw(st.sampled_from((2, 8))),
        gradient_checkpointing=draw(st.booleans()),
    )


def past_run(reserved_factor: float, context_gib: float) -> PastRun:
    """Return a run that reserved so many times what was predicted."""
    reserved = round(11 * GIB * reserved_factor)
    return PastRun(10 * GIB, 11 * GIB, 10 * GIB, reserved, round(context_gib * GIB))


cards = st.sampled_from(CARDS)
shapes = st.sampled_from(SHAPES)
NO_RUNS: tuple[PastRun, ...] = ()
ONE_RUN = (past_run(1.0, 0.3),)
SMALLER_THAN_PREDICTED = (past_run(0.8, 0.2),) * 3
LARGER_THAN_PREDICTED = (past_run(1.3, 2.5),) * 3
pasts = st.sampled_from((NO_RUNS, ONE_RUN, SMALLER_THAN_PREDICTED, LARGER_THAN_PREDICTED))


def memory_of(job: JobSpec, shape: Any, gpu: Gpu, past: tuple[PastRun, ...]) -> MemoryEstimate:
    return Case(job, shape, gpu, past=past).memory


@given(jobs(), shapes, cards, pasts)
@settings(max_examples=20, deadline=None)
def test_the_parts_of_any_job_add_up_to_its_total(
    job: JobSpec, shape: Any, gpu: Gpu, past: tuple[PastRun, ...]
) -> None:
    found = memory_of(job, shape, gpu, past)
    assert sum(part.bytes for part in found.components) == found.total_bytes
    assert sum(part.bytes for part in memory_parts(found)) == found.total_bytes
    assert all(part.bytes > 0 for part in memory_parts(found))


@given(jobs(), shapes, cards, pasts)
@settings(max_examples=20, deadline=None)
def test_a_verdict_names_the_total_and_what_is_too_much(
    job: JobSpec, shape: Any, gpu: Gpu, past: tuple[PastRun, ...]
) -> None:
    found = memory_of(job, shape, gpu, past)
    sentence = verdict_sentence(found)
    number, unit = re.findall(r"([\d.]+)( MiB)?(?: GiB)? of", sentence)[0]
    named = float(number) / (1024 if unit else 1)
    assert abs(named - found.total_bytes / GIB) < 0.051
    has_room = found.resident_bytes <= found.capacity_bytes
    assert has_room == ("too much" not in sentence)


@given(jobs(), shapes, cards, pasts)
@settings(max_examples=5, deadline=None)
def test_savings_are_differences_of_totals(
    job: JobSpec, shape: Any, gpu: Gpu, past: tuple[PastRun, ...]
) -> None:
    total = memory_of(job, shape, gpu, past).total_bytes
    for fix in suggest_fixes(job, shape, gpu, past=past):
        after = memory_of(JobSpec.parse({**job.model_dump(), **fix.change}), shape, gpu, past)
        assert fix.total_bytes == after.total_bytes
        assert fix.verdict == after.verdict
        assert fix.total_bytes == total - fix.saves_bytes
        assert fix.saves_bytes < total


def test_a_job_that_fits_after_past_runs_is_offered_no_smaller_one() -> None:
    total_bytes = estimate(job_of(), LLAMA_8B, card(24)).total_bytes
    job, gpu = job_of(), card(1.05 * total_bytes / GIB)
    before = {fix.saves for fix in suggest_fixes(job, LLAMA_8B, gpu)}
    after = {fix.saves for fix in suggest_fixes(job, LLAMA_8B, gpu, past=SMALLER_THAN_PREDICTED)}
    assert "memory" in before
    assert "memory" not in after


def test_a_plan_counts_what_past_runs_took() -> None:
    job, gpu = fastest(), card(48)
    chosen = plan(job, LLAMA_8B, gpu, past=LARGER_THAN_PREDICTED)
    planned_job = JobSpec.parse({**job.model_dump(), **chosen.change})
    found = memory_of(planned_job, LLAMA_8B, gpu, LARGER_THAN_PREDICTED)
    assert found.verdict == "fits"
    reason = next(each.reason for each in chosen.choices if " GiB" in each.reason)
    assert f"{found.total_bytes / GIB:.1f} of" in reason


def test_paged_states_are_a_part_of_their_own_and_the_last() -> None:
    found = estimate(job_of(**PAGED), LLAMA_8B, card(24))
    *others, paged = memory_parts(found)
    assert paged.may_leave_card
    assert paged.bytes == found.pageable_bytes
    assert not any(part.may_leave_card for part in others)


def test_a_verdict_with_paged_states_adds_up() -> None:
    found = estimate(job_of(**PAGED), LLAMA_8B, card(24))
    sentence = verdict_sentence(found)
    missing, total, capacity, paged = map(float, re.findall(r"\d+\.\d", sentence))
    assert found.verdict == "does_not_fit"
    assert abs(missing - (total - paged - capacity)) < 0.21


def test_reasons_speak_of_the_same_total() -> None:
    case = Case(job_of(**PAGED), LLAMA_8B, card(24))
    sentence = reasons(case)["gradient_checkpointing"]
    assert f"{case.memory.total_bytes / GIB:.1f} of 24.0 GiB" in sentence
