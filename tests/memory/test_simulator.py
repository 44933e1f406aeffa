"""Simulated device memory, autograd and PyTorch's caching allocator."""

from dataclasses import replace

import pytest

from core.memory.simulator import (
    ALIASES_UPSTREAM,
    LARGE_SEGMENT_BYTES,
    Allocator,
    AutogradGraph,
    DeviceMemory,
    WeightGradient,
)
from tests.builders.estimates import MIB

# Device memory


def test_a_tensor_is_freed_with_its_last_reference() -> None:
    memory = DeviceMemory()
    tensor = memory.retain(memory.allocate(100, 4, "activations"))
    memory.release(tensor)
    assert memory.live_bytes == 512
    memory.release(tensor)
    assert memory.live_bytes == 0


def test_a_scope_remembers_the_composition_of_its_peak() -> None:
    memory = DeviceMemory()
    weights = memory.allocate(1024, 1, "weights")
    memory.enter("step")
    memory.temporary(2048)
    memory.release(weights)
    memory.allocate(512, 1, "logits")
    assert memory.bytes_at_peaks()["step"] == {"weights": 1024, "temporary": 2048}


# Autograd


@pytest.fixture
def graph() -> AutogradGraph:
    return AutogradGraph(DeviceMemory())


def test_a_saved_tensor_lives_until_its_backward_pass(graph: AutogradGraph) -> None:
    x = graph.memory.allocate(256, 4, "activations", requires_grad=True)
    y = graph.record(x, saves=[x], consumes=True)
    assert graph.memory.live_bytes == 2048
    seed = graph.memory.allocate(256, 4, "temporary")
    gradient = graph.backward(graph.pop_nodes(), y, seed, x)
    graph.release(y)
    assert gradient is not None
    assert graph.memory.live_bytes == gradient.num_bytes


def test_an_aliased_gradient_takes_no_memory(graph: AutogradGraph) -> None:
    x = graph.memory.allocate(256, 4, "activations", requires_grad=True)
    y = graph.record(x, gradient_bytes=[ALIASES_UPSTREAM])
    seed = graph.memory.allocate(256, 4, "temporary")
    assert graph.backward(graph.pop_nodes(), y, seed, x) is seed


def test_both_gradients_of_a_tied_weight_exist_before_they_are_added(graph: AutogradGraph) -> None:
    whole = WeightGradient("embedding", 1024)
    graph.accumulate(whole)
    graph.accumulate(replace(whole, is_partial=True))
    assert graph.memory.live_bytes == 2048
    graph.accumulate(whole)
    assert graph.memory.peaks[""].num_bytes == 3072
    assert graph.memory.live_bytes == 1024


def test_nothing_is_saved_while_the_graph_does_not_record(graph: AutogradGraph) -> None:
    graph.is_recording = False
    x = graph.memory.allocate(256, 4, "activations", requires_grad=True)
    y = graph.record(x, saves=[x], consumes=True)
    assert graph.memory.live_bytes == y.num_bytes
    assert not y.requires_grad


# Allocator


def test_native_segments_are_2_mib_20_mib_or_as_large_as_asked_for() -> None:
    allocator = Allocator(expandable_segments=False)
    reserved = []
    for key, num_bytes in enumerate((512, 5 * MIB, 16 * MIB)):
        allocator.allocate(key, num_bytes)
        reserved.append(allocator.reserved_bytes)
    assert reserved == [2 * MIB, 22 * MIB, 38 * MIB]


def test_a_freed_block_is_used_again() -> None:
    allocator = Allocator(expandable_segments=False)
    allocator.replay([0, ~0, 1, ~1, 2], [12 * MIB, 8 * MIB, 3 * MIB])
    assert allocator.peak_reserved_bytes == 12 * MIB


@pytest.mark.parametrize(
    ("expandable", "allocated_bytes"), [(False, 12 * MIB), (True, 11 * MIB + 512)]
)
def test_a_native_block_keeps_a_rest_of_up_to_a_mebibyte(
    expandable: bool, allocated_bytes: int
) -> None:
    allocator = Allocator(expandable)
    allocator.replay([0], [11 * MIB + 512])
    assert allocator.allocated_bytes == allocated_bytes


def test_free_neighbours_become_one_block() -> None:
    allocator = Allocator(expandable_segments=True)
    allocator.replay([0, 1, 2, ~0, ~2, ~1, 3], [10 * MIB, 10 * MIB, 10 * MIB, 30 * MIB])
    assert allocator.peak_reserved_bytes == 2 * LARGE_SEGMENT_BYTES


@pytest.mark.parametrize(("expandable", "reserved_mib"), [(False, 100), (True, 60)])
def test_an_expandable_segment_grows_instead_of_a_new_one(
    expandable: bool, reserved_mib: int
) -> None:
    allocator = Allocator(expandable)
    allocator.replay([0, ~0, 1], [40 * MIB, 60 * MIB])
    assert allocator.reserved_bytes == reserved_mib * MIB


def test_an_emptied_cache_keeps_only_what_is_in_use() -> None:
    allocator = Allocator(expandable_segments=False)
    allocator.replay([0, 1, ~0], [40 * MIB, 60 * MIB])
    allocator.empty_cache()
    assert allocator.reserved_bytes == 60 * MIB
