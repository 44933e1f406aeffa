"""What surrounds the estimate: its range and why, the lessons of past runs, the course of a run."""

from dataclasses import replace

import pytest

from core.job import JobSpec
from core.memory import PastRun, estimate, refine, timeline
from tests.memory.test_estimate import CPU, GPU, LLAMA, card, predict, sizes_of

MIB = 2**20


def run(reserved_factor: float = 1.0, context_bytes: int | None = None) -> PastRun:
    """A run that reserved so many times what was foretold."""
    found = predict()
    return PastRun(
        found.peak_allocated_bytes,
        found.peak_reserved_bytes,
        allocated_bytes=found.peak_allocated_bytes,
        reserved_bytes=round(found.peak_reserved_bytes * reserved_factor),
        context_bytes=context_bytes,
    )


# The range


def test_packing_narrows_the_range_and_unknown_lengths_widen_it() -> None:
    packed, padded = predict(packing=True), predict()
    assert packed.spread < padded.spread
    assert "Packed" in packed.why and "2048 at most" in padded.why


def test_rows_that_are_nearly_all_of_one_length_narrow_the_range() -> None:
    job = JobSpec.parse({})
    spreads = [
        estimate(job, LLAMA, GPU, mean_row_tokens=mean).spread for mean in (2048, 1024, None)
    ]
    assert spreads == sorted(spreads) and spreads[0] < spreads[-1]


def test_a_compiled_model_has_a_wider_range() -> None:
    plain, compiled = predict(), predict(torch_compile=True)
    assert compiled.spread > plain.spread and "compiled" in compiled.why


def test_a_card_whose_context_nobody_measured_says_so() -> None:
    assert "Nobody has measured" in predict().why
    assert "Nobody has measured" not in predict(gpu=card((7, 5))).why


# Past runs


def test_without_past_runs_an_estimate_stays_what_it_is() -> None:
    assert refine(predict(), ()) == predict()


def test_the_measured_context_takes_the_place_of_the_assumed_one() -> None:
    found = refine(predict(), [run(context_bytes=size * MIB) for size in (300, 320, 310)])
    assert sizes_of(found)["cuda_context"] == 310 * MIB
    assert (found.context.low_bytes, found.context.high_bytes) == (300 * MIB, 320 * MIB)
    assert found.high_bytes - found.low_bytes < predict().high_bytes - predict().low_bytes


def test_what_past_runs_reserved_corrects_the_gaps_and_no_tensor() -> None:
    plain = predict()
    found = refine(plain, [run(reserved_factor=factor) for factor in (1.02, 1.04, 1.5)])
    assert found.peak_reserved_bytes == pytest.approx(1.04 * plain.peak_reserved_bytes, rel=1e-6)
    assert found.phases == plain.phases and found.peak_allocated_bytes == plain.peak_allocated_bytes
    changed = {name for name, size in sizes_of(found).items() if size != sizes_of(plain)[name]}
    assert changed == {"fragmentation"}
    assert sum(sizes_of(found).values()) == found.total_bytes


def test_one_odd_run_does_not_count() -> None:
    assert (
        refine(predict(), [run(reserved_factor=2.0)]).peak_reserved_bytes
        == predict().peak_reserved_bytes
    )


def test_a_refined_estimate_is_judged_anew() -> None:
    barely = predict(gpu=card(capacity_bytes=round(predict().total_bytes * 1.01)))
    assert barely.verdict == "tight"
    assert refine(barely, [run(reserved_factor=1.1)] * 3).verdict == "does_not_fit"


def test_a_cpu_learns_no_context() -> None:
    assert "cuda_context" not in sizes_of(refine(predict(gpu=CPU), [run(context_bytes=300 * MIB)]))


def test_runs_that_measured_nothing_are_left_out() -> None:
    assert refine(predict(), [replace(run(), allocated_bytes=0)] * 3) == predict()


# The course of a run


def test_the_timeline_peaks_where_the_estimate_does_and_stays_short() -> None:
    job = JobSpec.parse({"method": "lora"})
    moments = timeline(job, LLAMA, GPU, num_moments=300)
    assert len(moments) <= 300
    assert (
        max(num_bytes for *_, num_bytes in moments)
        == estimate(job, LLAMA, GPU).peak_allocated_bytes
    )
    assert moments[0][0] == "load"
    assert {"forward, layer 1", "backward, layer 16"} <= {label for _, label, _ in moments}


def test_the_phases_of_a_timeline_are_those_of_the_estimate() -> None:
    job = JobSpec.parse({"stage": "grpo", "max_length": 1024})
    assert {phase for phase, *_ in timeline(job, LLAMA, GPU, 2000)} <= set(
        estimate(job, LLAMA, GPU).phases
    )
