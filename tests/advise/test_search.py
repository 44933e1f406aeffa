"""Search: its front is ordered, its rough memory guides it, and it finds the best that fits."""

from itertools import pairwise

import pytest

from core.advise import Case
from core.advise.rough_memory import rough_bytes
from core.advise.search import configurations, pareto_front, search
from core.models import gpus
from tests.builders.advice_cases import LLAMA_8B as LLAMA
from tests.builders.advice_cases import PLANNED_CASES, SHORT_ROWS, card, fastest

NOTHING: frozenset[str] = frozenset()


@pytest.fixture(scope="module")
def front() -> list[Case]:
    """Return the front of an 8B model, from a job that keeps everything."""
    keeps_all = fastest(gradient_checkpointing=False, optim="adamw_torch_fused")
    start = Case(keeps_all, LLAMA, gpus()["rtx-4090"], SHORT_ROWS)
    return pareto_front(configurations(start, NOTHING))


def test_a_front_gets_faster(front: list[Case]) -> None:
    seconds = [case.seconds_per_token() for case in front]
    assert seconds == sorted(seconds, reverse=True)


def test_a_front_takes_more_memory_by_the_estimate_too(front: list[Case]) -> None:
    totals = [case.memory.total_bytes for case in front]
    tolerance = 1.01  # configurations of the same rough memory
    assert all(earlier <= tolerance * later for earlier, later in pairwise(totals))


def test_rough_memory_is_within_a_quarter_of_the_estimate(front: list[Case]) -> None:
    for case in front:
        assert rough_bytes(case) == pytest.approx(case.memory.total_bytes, rel=0.25)


@pytest.mark.parametrize("capacity_gib", [17.5, 19, 21, 22, 24, 26, 31, 40])
def test_the_search_finds_the_fastest_of_the_front_that_fits(capacity_gib: float) -> None:
    gpu = card(capacity_gib)
    found = search(Case(fastest(), LLAMA, gpu, SHORT_ROWS), NOTHING)
    start = found.changed(
        {
            "gradient_checkpointing": False,
            "checkpoint_every_n_layers": 1,
            "activation_offloading": False,
            "activation_memory_budget": 1.0,
            "torch_compile": False,
            "packing": False,
            "attn_implementation": "sdpa",
            "per_device_train_batch_size": 16,
            "gradient_accumulation_steps": 1,
        }
    )
    assert start
    fitting = [case for case in pareto_front(configurations(start, NOTHING)) if case.fits]
    assert found.seconds_per_token() <= fitting[-1].seconds_per_token()


@pytest.mark.parametrize("name", PLANNED_CASES)
def test_no_configuration_contradicts_itself(name: str) -> None:
    for case in configurations(Case(*PLANNED_CASES[name]), NOTHING):
        assert not (case.job.torch_compile and case.job.activation_offloading)


def test_compiling_has_its_price_in_the_comparison() -> None:
    eager = Case(fastest(max_steps=100), LLAMA, gpus()["h100"])
    compiled = Case(fastest(max_steps=100, torch_compile=True), LLAMA, gpus()["h100"])
    assert eager.compile_seconds == 0
    assert compiled.compile_seconds > 0
