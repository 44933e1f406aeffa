"""Extrapolation of deep models, activation memory budgets, and fragmentation."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest

from core.job import JobSpec
from core.memory.extrapolate import extrapolate_peaks
from core.memory.program import program_of
from core.memory.simulator import Allocator
from core.memory.step import PHASES, Simulation
from core.models import ModelShape
from core.training.contract.methods import METHODS
from tests.builders.estimates import GPU, LLAMA, assert_no_lower, gemma3, predict

TRAINING_PHASES = set(PHASES) - {"generation"}
WITHIN_BUDGET = {
    "gradient_checkpointing": False,
    "torch_compile": True,
    "activation_memory_budget": 0.5,
}


def simulated_peaks(shape: ModelShape, **fields: object) -> dict[str, int]:
    """Return the allocated peak of each phase with every layer of the model simulated."""
    program = program_of(JobSpec.parse(fields), shape, GPU)
    peaks = Simulation(program, program.layer_kinds()).run().memory.peaks
    return {
        phase: max(peak.num_bytes for scope, peak in peaks.items() if scope.split("/")[0] == phase)
        for phase in TRAINING_PHASES
    }


def extrapolated_peaks(shape: ModelShape, **fields: object) -> dict[str, int]:
    """Return the allocated peak of each phase from shallow simulations."""
    peaks = extrapolate_peaks(program_of(JobSpec.parse(fields), shape, GPU))
    return {phase: composition.total() for phase, composition in peaks.by_phase.items()}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "other",
    [
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": False},
        {"activation_offloading": True, "max_length": 4096},
        {"lora_r": 64},
        {**WITHIN_BUDGET, "activation_memory_budget": 1},
        WITHIN_BUDGET,
    ],
    ids=str,
)
def test_a_deep_model_is_extrapolated_exactly(method: str, other: Mapping[str, object]) -> None:
    fields: dict[str, Any] = {"method": method, "max_length": 1024, **other}
    assert extrapolated_peaks(LLAMA, **fields) == simulated_peaks(LLAMA, **fields)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_model_that_mixes_layers_is_extrapolated_to_a_percent(batch: int) -> None:
    fields: dict[str, Any] = {"method": "lora", "per_device_train_batch_size": batch}
    exact = max(simulated_peaks(gemma3(), **fields).values())
    assert exact <= max(extrapolated_peaks(gemma3(), **fields).values()) <= 1.01 * exact


@pytest.mark.parametrize("num_layers", [7, 8, 13, 14, 25])
def test_one_more_layer_of_a_mixed_model_never_lowers_the_estimate(num_layers: int) -> None:
    assert_no_lower(predict(gemma3(num_layers + 1)), predict(gemma3(num_layers)))


# Activation memory budget


def forward_bytes(method: str, **fields: object) -> int:
    return predict(method=method, **{**WITHIN_BUDGET, **fields}).phases["forward"]


def with_budget(method: str, budget: float) -> int:
    return forward_bytes(method, activation_memory_budget=budget)


@pytest.mark.parametrize("method", ["lora", "full", "qlora"])
def test_a_budget_of_0_keeps_as_much_as_checkpointing(method: str) -> None:
    assert with_budget(method, 0) == forward_bytes(method, gradient_checkpointing=True)


@pytest.mark.parametrize("method", ["lora", "full", "qlora"])
def test_small_budgets_are_used_in_proportion(method: str) -> None:
    budgets = (0, 0.1, 0.3, 0.5)
    kept = [with_budget(method, budget) for budget in budgets]
    slopes = [
        (after - before) / (high - low)
        for (before, after), (low, high) in zip(pairwise(kept), pairwise(budgets), strict=True)
    ]
    everything = with_budget(method, 1) - kept[0]
    assert slopes == pytest.approx([everything] * len(slopes), rel=0.1)


@pytest.mark.parametrize("method", ["lora", "full", "qlora"])
def test_a_large_budget_keeps_everything_that_takes_a_matmul(method: str) -> None:
    matmuls_kept = with_budget(method, 0.9)
    assert matmuls_kept == with_budget(method, 0.8)
    assert with_budget(method, 0.5) < matmuls_kept < with_budget(method, 1)


@pytest.mark.parametrize(
    "other", [{"torch_compile": False}, {"gradient_checkpointing": True}], ids=str
)
def test_a_budget_needs_compiled_layers_without_checkpointing(other: dict[str, object]) -> None:
    fields = {**WITHIN_BUDGET, **other}
    unlimited = predict(**{**fields, "activation_memory_budget": 1})
    assert predict(**fields).components == unlimited.components


# Fragmentation


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("batch", "length"), [(1, 512), (2, 2048), (3, 1000), (8, 1024)])
def test_fragmentation_is_close_to_a_replay_of_the_allocator(
    method: str, checkpointing: bool, batch: int, length: int
) -> None:
    fields: dict[str, Any] = {
        "method": method,
        "gradient_checkpointing": checkpointing,
        "per_device_train_batch_size": batch,
        "max_length": length,
    }
    program = program_of(JobSpec.parse(fields), LLAMA, GPU)
    simulation = Simulation(program, program.layer_kinds())
    simulation.load()
    simulation.step()
    simulation.step()
    allocator = Allocator(expandable_segments=True)
    allocator.replay(simulation.memory.log, simulation.memory.sizes)
    reserved = predict(**fields).peak_reserved_bytes
    assert reserved == pytest.approx(allocator.peak_reserved_bytes, rel=0.06)
