"""Memory of suites that the model answers during a training, in the phase of evaluations."""

import pytest

from core.job import JobSpec
from core.memory import MemoryEstimate, estimate
from core.training.contract.job import (
    CHECK_ANSWER_TOKENS,
    CHECK_BATCH_SIZE,
    CHECK_PROMPT_TOKENS,
)
from tests.builders.estimates import GPU, LLAMA

SMALL = {"max_length": 64, "per_device_train_batch_size": 1}
KEYS_AND_VALUES = 2
BFLOAT16 = 2


def estimate_of(**fields: object) -> MemoryEstimate:
    return estimate(JobSpec.parse({**SMALL, **fields}), LLAMA, GPU)


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
@pytest.mark.parametrize("stage", ["sft", "dpo", "cpt"])
def test_suites_raise_the_phase_of_evaluations(stage: str, method: str) -> None:
    fields = {"stage": stage, "method": method}
    without, checked = estimate_of(**fields), estimate_of(**fields, check_steps=10)
    assert checked.phases["eval"] > without.phases["eval"]
    others = [phase for phase in without.phases if phase not in ("eval", "save")]
    assert [checked.phases[phase] for phase in others] == [
        without.phases[phase] for phase in others
    ]


def test_how_often_suites_are_answered_takes_no_memory() -> None:
    assert estimate_of(check_steps=1).phases == estimate_of(check_steps=500).phases


def test_the_cache_holds_all_tokens_of_a_batch() -> None:
    sizes = {part.name: part.bytes for part in estimate_of(check_steps=10).components}
    prompts = CHECK_BATCH_SIZE * CHECK_PROMPT_TOKENS
    per_token = KEYS_AND_VALUES * LLAMA.num_key_value_heads * LLAMA.head_dim * BFLOAT16
    least = prompts * per_token * LLAMA.num_hidden_layers
    most = least * (CHECK_PROMPT_TOKENS + CHECK_ANSWER_TOKENS) // CHECK_PROMPT_TOKENS
    assert least <= sizes["generation_cache"] <= most


def test_a_suite_changes_little_where_training_takes_more() -> None:
    fields = {"max_length": 4096, "per_device_train_batch_size": 8}
    assert estimate_of(**fields, check_steps=10).total_bytes == estimate_of(**fields).total_bytes
