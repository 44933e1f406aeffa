"""Reasons of a plan: short, with the numbers that decided, and true."""

import pytest

from core.advise import plan
from core.models import gpus
from core.speed import RowStatistics
from tests.builders.advice_cases import (
    CPU,
    FULL_ROWS,
    GEMMA_3,
    LLAMA_8B,
    PLANNED_CASES,
    QWEN_SMALL,
    SHORT_ROWS,
    fastest,
    planned,
    reasons_of,
)

MAX_CHARACTERS = 140


@pytest.fixture(params=PLANNED_CASES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_reason_is_one_short_sentence(name: str) -> None:
    for choice in plan(*PLANNED_CASES[name]).choices:
        assert choice.reason.endswith("."), choice
        assert ". " not in choice.reason, choice
        assert len(choice.reason) < MAX_CHARACTERS, choice


def test_every_reason_holds_a_number(name: str) -> None:
    for choice in plan(*PLANNED_CASES[name]).choices:
        assert any(letter.isdigit() for letter in choice.reason), choice


def test_one_of_anything_is_in_the_singular() -> None:
    job = fastest(per_device_train_batch_size=1, gradient_accumulation_steps=1, packing=True)
    rows = RowStatistics(50, mean_tokens=1.0)
    sentences = reasons_of(job, QWEN_SMALL, gpus()["rtx-4090"], rows)
    assert "1 packed row, 1 at once" in sentences["gradient_accumulation_steps"]
    assert "Rows count as 1 token " in sentences["packing"]


def test_a_short_run_is_given_in_seconds() -> None:
    sentence = reasons_of(fastest(max_steps=2), QWEN_SMALL, gpus()["h100"], FULL_ROWS)
    assert "Compiling takes some 100 s; with it, the run of " in sentence["torch_compile"]
    assert " s would take " in sentence["torch_compile"]


def test_the_time_without_compiling_is_forecast() -> None:
    rows = RowStatistics(50_000, mean_tokens=300)
    after = planned(fastest(), LLAMA_8B, gpus()["rtx-4090"], rows)
    eager = after.changed(
        {
            "torch_compile": False,
            "gradient_checkpointing": True,
            "activation_memory_budget": 1.0,
        }
    )
    assert eager
    percent = 100 * eager.seconds_per_token() / after.seconds_per_token()
    sentence = reasons_of(fastest(), LLAMA_8B, gpus()["rtx-4090"], rows)["torch_compile"]
    assert f"would take {percent:.0f} % of the time" in sentence


def test_the_budget_is_given_in_percent() -> None:
    rows = RowStatistics(50_000, mean_tokens=300)
    after = planned(fastest(), LLAMA_8B, gpus()["rtx-4090"], rows).job
    sentences = reasons_of(fastest(), LLAMA_8B, gpus()["rtx-4090"], rows)
    percent = f"{100 * after.activation_memory_budget:.0f} %"
    assert percent in sentences["activation_memory_budget"]


def test_a_far_longer_time_is_given_in_times() -> None:
    rows = RowStatistics(50_000, mean_tokens=20, p95_tokens=40, max_tokens=60)
    sentences = reasons_of(fastest(), LLAMA_8B, gpus()["h200"], rows)
    assert "times as long" in " ".join(sentences.values())


def test_rows_too_short_to_pack_into_a_step_are_explained() -> None:
    rows = RowStatistics(50_000, mean_tokens=20)
    sentence = reasons_of(fastest(), LLAMA_8B, gpus()["rtx-4090"], rows)["packing"]
    assert "not packed, as one would hold" in sentence


@pytest.mark.parametrize(
    ("mean_tokens", "said"),
    [
        (1900, "93 % of max_length: not packed."),
        (1400, "one would hold 1.5, and a step sees 1 row."),
    ],
)
def test_one_row_of_a_step_is_not_said_to_hold_one(mean_tokens: float, said: str) -> None:
    job = fastest(per_device_train_batch_size=1, gradient_accumulation_steps=1)
    rows = RowStatistics(50_000, mean_tokens=mean_tokens)
    assert reasons_of(job, LLAMA_8B, gpus()["h100"], rows)["packing"].endswith(said)


def test_rows_of_a_step_are_those_of_each_device() -> None:
    rows = RowStatistics(50_000, mean_tokens=20)
    sentences = reasons_of(fastest(num_devices=2), LLAMA_8B, gpus()["h100"], rows)
    assert "rows of each device" in sentences["packing"]
    assert "rows of each device, " in sentences["gradient_accumulation_steps"]


def test_rows_of_kto_are_compared_with_the_fewest_possible() -> None:
    sentences = reasons_of(fastest(stage="kto"), QWEN_SMALL, gpus()["h100"], SHORT_ROWS)
    assert sentences["per_device_train_batch_size"].startswith("2 at once instead of ")


def test_the_only_batch_is_compared_with_nothing() -> None:
    job = fastest(stage="kto", per_device_train_batch_size=2, gradient_accumulation_steps=1)
    sentences = reasons_of(job, QWEN_SMALL, gpus()["h100"])
    assert sentences["per_device_train_batch_size"] == "An optimizer step sees 2 rows."


def test_the_smallest_plan_admits_that_compiling_would_be_faster() -> None:
    sentence = reasons_of(*PLANNED_CASES["smallest"])["torch_compile"]
    percent = int(sentence.split("would take ")[1].split(" %")[0])
    assert percent < 100


def test_drawn_answers_are_said_to_need_a_mask() -> None:
    sentences = reasons_of(fastest(stage="grpo"), QWEN_SMALL, gpus()["h100"], SHORT_ROWS)
    assert "and need a mask" in sentences["attn_implementation"]


def test_windows_are_said_to_need_a_mask() -> None:
    sentences = reasons_of(fastest(), GEMMA_3, gpus()["h100"], FULL_ROWS)
    assert "need a mask only in layers" in sentences["attn_implementation"]


@pytest.mark.parametrize(("gpu", "copy_gib"), [("t4", "1.8"), ("rtx-4090", "0.9")])
def test_the_size_of_a_second_copy_is_given(gpu: str, copy_gib: str) -> None:
    job = fastest(stage="dpo", method="full")
    sentence = reasons_of(job, QWEN_SMALL, gpus()[gpu], SHORT_ROWS)["precompute_ref_log_probs"]
    assert f"second copy of {copy_gib} GiB" in sentence


def test_a_processor_is_not_called_a_card() -> None:
    sentences = " ".join(reasons_of(fastest(stage="cpt"), QWEN_SMALL, CPU, SHORT_ROWS).values())
    assert "processor" in sentences
    assert "card" not in sentences
    assert "0.0." not in sentences
