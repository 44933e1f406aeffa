"""Around the estimate: its range and why, calibration by past runs, the timeline of a run."""

import time
from dataclasses import replace

import pytest

from core.job import JobSpec
from core.memory import MemoryEstimate, PastRun, TimelinePoint, estimate, refine, timeline
from core.memory.timeline import MAX_LAYERS, MAX_POINTS
from core.models import ModelShape
from tests.builders.estimates import CPU, GPU, LLAMA, MIB, T4, card, component_bytes, predict


def run(reserved_factor: float = 1.0, context_bytes: int | None = None) -> PastRun:
    """Return a run that reserved so many times what was predicted."""
    found = predict()
    return PastRun(
        found.peak_allocated_bytes,
        found.peak_reserved_bytes,
        allocated_bytes=found.peak_allocated_bytes,
        reserved_bytes=round(found.peak_reserved_bytes * reserved_factor),
        context_bytes=context_bytes,
    )


# Range


def test_packing_narrows_the_range() -> None:
    assert predict(packing=True).uncertainty.reserved_share < predict().uncertainty.reserved_share


def test_the_range_of_packed_rows_says_why() -> None:
    assert "Packed" in predict(packing=True).why


def test_the_range_of_unknown_lengths_says_why() -> None:
    assert "2048 at most" in predict().why


def test_rows_of_nearly_equal_length_narrow_the_range() -> None:
    job = JobSpec.parse({})
    equal, varied, unknown = (
        estimate(job, LLAMA, GPU, mean_row_tokens=mean).uncertainty.reserved_share
        for mean in (2048, 1024, None)
    )
    assert equal < varied < unknown


def test_a_compiled_model_has_a_wider_range() -> None:
    assert (
        predict(torch_compile=True).uncertainty.reserved_share
        > predict().uncertainty.reserved_share
    )


def test_the_range_of_a_compiled_model_says_why() -> None:
    assert "compiled" in predict(torch_compile=True).why


def test_a_card_whose_context_is_not_measured_says_so() -> None:
    assert "not been measured" in predict().why


def test_a_card_whose_context_is_measured_does_not_mention_it() -> None:
    assert "not been measured" not in predict(gpu=T4).why


# Past runs


def test_an_estimate_without_past_runs_stays_the_same() -> None:
    assert refine(predict(), ()) == predict()


@pytest.fixture
def with_contexts() -> MemoryEstimate:
    """Estimate after three runs whose contexts were measured."""
    return refine(predict(), [run(context_bytes=size * MIB) for size in (300, 320, 310)])


def test_a_measured_context_replaces_the_assumed_one(with_contexts: MemoryEstimate) -> None:
    assert component_bytes(with_contexts)["cuda_context"] == 310 * MIB


def test_measured_contexts_bound_the_next_one(with_contexts: MemoryEstimate) -> None:
    context = with_contexts.context
    assert (context.low_bytes, context.high_bytes) == (300 * MIB, 320 * MIB)


def test_a_measured_context_narrows_the_range(with_contexts: MemoryEstimate) -> None:
    plain = predict()
    width = with_contexts.high_bytes - with_contexts.low_bytes
    assert width < plain.high_bytes - plain.low_bytes


@pytest.fixture
def with_gaps() -> MemoryEstimate:
    """Estimate after three runs that reserved more than predicted."""
    return refine(predict(), [run(reserved_factor=factor) for factor in (1.02, 1.04, 1.5)])


def test_the_median_of_past_runs_corrects_reserved_memory(with_gaps: MemoryEstimate) -> None:
    expected = 1.04 * predict().peak_reserved_bytes
    assert with_gaps.peak_reserved_bytes == pytest.approx(expected, rel=1e-6)


def test_past_runs_do_not_correct_phases(with_gaps: MemoryEstimate) -> None:
    assert with_gaps.phases == predict().phases


def test_past_runs_do_not_correct_allocated_memory(with_gaps: MemoryEstimate) -> None:
    assert with_gaps.peak_allocated_bytes == predict().peak_allocated_bytes


def test_past_runs_correct_no_tensor(with_gaps: MemoryEstimate) -> None:
    before, after = component_bytes(predict()), component_bytes(with_gaps)
    assert {name for name in after if after[name] != before[name]} == {"fragmentation"}


def test_the_components_of_a_corrected_estimate_add_up(with_gaps: MemoryEstimate) -> None:
    assert sum(component_bytes(with_gaps).values()) == with_gaps.total_bytes


def test_one_odd_run_does_not_count() -> None:
    refined = refine(predict(), [run(reserved_factor=2.0)])
    assert refined.peak_reserved_bytes == predict().peak_reserved_bytes


def test_a_corrected_estimate_gets_a_new_verdict() -> None:
    tight = predict(gpu=card(capacity_bytes=round(predict().total_bytes * 1.01)))
    assert tight.verdict == "tight"
    assert refine(tight, [run(reserved_factor=1.1)] * 3).verdict == "does_not_fit"


def test_a_cpu_learns_what_the_process_takes_beside_its_tensors() -> None:
    before = predict(gpu=CPU)
    refined = refine(before, [run(context_bytes=300 * MIB)])
    assert refined.total_bytes == before.peak_allocated_bytes + 300 * MIB
    assert refined.context.title == before.context.title


def test_runs_that_measured_nothing_are_left_out() -> None:
    assert refine(predict(), [replace(run(), allocated_bytes=0)] * 3) == predict()


# Timeline

SECONDS_TO_DRAW = 10
"""Far more than it takes, and far less than a simulation of 4,096 layers."""
LORA = JobSpec.parse({"method": "lora"})


def test_a_timeline_is_short_enough_to_draw() -> None:
    assert len(timeline(LORA, LLAMA, GPU)) <= MAX_POINTS


def test_a_timeline_has_the_peak_of_the_estimate() -> None:
    highest = max(point.num_bytes for point in timeline(LORA, LLAMA, GPU))
    assert highest == estimate(LORA, LLAMA, GPU).peak_allocated_bytes


@pytest.mark.parametrize("longest", [100, 700])
def test_a_timeline_of_short_rows_has_their_peak(longest: int) -> None:
    highest = max(point.num_bytes for point in timeline(LORA, LLAMA, GPU, longest))
    assert highest == estimate(LORA, LLAMA, GPU, longest).peak_allocated_bytes


def test_a_timeline_begins_with_the_load() -> None:
    assert timeline(LORA, LLAMA, GPU)[0].phase == "load"


@pytest.mark.parametrize("label", ["forward, layer 1", "backward, layer 16"])
def test_a_timeline_names_layers(label: str) -> None:
    assert label in {point.label for point in timeline(LORA, LLAMA, GPU)}


def test_the_phases_of_a_timeline_are_those_of_the_estimate() -> None:
    job = JobSpec.parse({"stage": "grpo", "max_length": 1024})
    phases = {point.phase for point in timeline(job, LLAMA, GPU)}
    assert phases <= set(estimate(job, LLAMA, GPU).phases)


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "full"},
        {"method": "full", "gradient_checkpointing": False},
        {"method": "qlora", "stage": "dpo"},
        {"method": "freeze", "num_trainable_layers": 40},
    ],
    ids=str,
)
def test_a_deep_timeline_has_the_peak_of_the_estimate(fields: dict[str, object]) -> None:
    deep, job = deep_llama(MAX_LAYERS + 1), JobSpec.parse(fields)
    points = timeline(job, deep, GPU)
    expected = estimate(job, deep, GPU).peak_allocated_bytes
    assert max(point.num_bytes for point in points) == pytest.approx(expected, rel=0.01)
    assert "backward, layer 129" in {point.label for point in points}


def test_a_timeline_of_4096_layers_is_as_short_as_another() -> None:
    deep = deep_llama(4096)
    began = time.monotonic()
    points = timeline(LORA, deep, GPU)
    assert time.monotonic() - began < SECONDS_TO_DRAW
    assert len(points) <= MAX_POINTS
    assert layers_of(points)[-1] == 4096


def deep_llama(num_layers: int) -> ModelShape:
    layer_types = LLAMA.layer_types[:1] * num_layers
    return replace(LLAMA, num_hidden_layers=num_layers, layer_types=layer_types)


def layers_of(points: tuple[TimelinePoint, ...]) -> list[int]:
    """Return the layers of the forward pass, in order."""
    labels = [point.label for point in points if point.label.startswith("forward, layer ")]
    return [int(label.rpartition(" ")[2]) for label in labels]
