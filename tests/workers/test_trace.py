"""The trace by itself, and the estimate against it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.trace_agreement import GPU, QUICK, SIZES, Case, agreement, cases
from core.job import JobSpec, TraceError
from core.memory import estimate, trace_check
from core.memory.trace_check import (
    FIELDS_WITHOUT_MEMORY,
    TraceRequest,
    TraceResult,
    estimate_by_tracing,
    trace_all,
    trace_peak_memory,
    uncompiled,
)
from core.models import ModelShape, gpus
from core.workers.trace.allocation_log import AllocationLog
from core.workers.trace.depth import extrapolate, shallow_layers

CLOSE = 0.02
CONFIG: Mapping[str, Any] = {"model_type": "llama", **SIZES}

WIDENED: Mapping[str, Mapping[str, object]] = {
    "embedding and head": {"modules_to_save": "embed_tokens,lm_head"},
    "a layer": {"modules_to_save": "down_proj", "target_modules": "q_proj"},
    "a head that scores": {"stage": "reward"},
}
"""What trains whole over a base in float16, and therefore in float32."""


def job(**fields: object) -> JobSpec:
    return JobSpec.parse(
        {"gpu": GPU, "max_length": 256, "gradient_accumulation_steps": 1, **fields}
    )


CASES = {case.name: case for case in cases()} | {
    name: Case(
        name,
        "llama",
        CONFIG,
        job(gpu="t4", max_length=1024, gradient_accumulation_steps=8, **fields),
    )
    for name, fields in WIDENED.items()
}


def request(config: Mapping[str, Any] = CONFIG, **fields: object) -> TraceRequest:
    return TraceRequest(job(**fields), config, gpus()[GPU])


ASKED = {
    "nonsense": request({"model_type": "nonsense"}),
    "compiled": request(torch_compile=True),
    "judged": request(
        stage="grpo", reward_model="/judge", max_completion_length=64, gradient_accumulation_steps=8
    ),
    "plain": request(),
    "paged": request(method="full", optim="paged_adamw_8bit"),
    "pissa": request(init_lora_weights="pissa"),
    "dora": request(use_dora=True),
    "no closed form": request({**CONFIG, "model_type": "stablelm", "num_key_value_heads": 16}),
}


@pytest.fixture(scope="module")
def shares() -> list[float]:
    """How far each trace was, as the child said."""
    return []


@pytest.fixture(scope="module")
def answers(
    request: pytest.FixtureRequest, shares: list[float]
) -> Mapping[str, TraceResult | TraceError]:
    """What the trace says to these and to every case that is to be tested, all traced by one child."""
    wanted = [
        item.callspec.params["case"] for item in request.session.items if _is_about_a_case(item)
    ]
    asked = ASKED | {case.name: case.request for case in wanted}
    return dict(zip(asked, trace_all(asked.values(), shares.append), strict=True))


def _is_about_a_case(item: pytest.Item) -> bool:
    return (
        isinstance(item, pytest.Function)
        and item.function is test_the_estimate_agrees_with_the_trace
    )


# The trace


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where traces are remembered."""
    return tmp_path_factory.mktemp("traces")


def test_an_exact_estimate_is_remembered_and_a_torn_memory_is_none(
    cache: Path, answers: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[TraceRequest] = []
    told: list[float] = []

    def trace_once(
        requests: Sequence[TraceRequest], tell: Callable[[float], None]
    ) -> Iterator[TraceResult]:
        asked.extend(requests)
        tell(0.5)
        yield answers["plain"]

    monkeypatch.setattr(trace_check, "trace_all", trace_once)
    (cache / f"{request().key}.json").write_text('{"phases": ')
    for _ in range(2):
        assert trace_peak_memory(request(), cache, told.append) == answers["plain"]
    assert (asked, told) == ([request()], [0.5]), "the second time nothing had to be done"


def test_a_trace_says_how_far_it_is(answers: Mapping[str, Any], shares: list[float]) -> None:
    traced = [answer for answer in answers.values() if isinstance(answer, TraceResult)]
    assert len(shares) >= len(traced) and all(0 < share <= 1 for share in shares)


@pytest.mark.parametrize(
    "field", [name for name in FIELDS_WITHOUT_MEMORY if name != "init_lora_weights"]
)
def test_what_changes_no_tensor_needs_no_new_trace(field: str) -> None:
    other = {"model": "other/model", "revision": "v2", "lora_alpha": 64.0, "use_rslora": True}[
        field
    ]
    assert request(**{field: other}).key == request().key
    assert request(lora_r=32).key != request().key


def test_a_peak_is_that_of_the_highest_phase_and_more_is_reserved(
    answers: Mapping[str, Any],
) -> None:
    plain = answers["plain"]
    assert set(plain.phases) == {"load", "forward", "backward", "optimizer_step", "eval"}
    assert plain.peak_reserved_bytes >= plain.peak_allocated_bytes == max(plain.phases.values())


@pytest.mark.parametrize("name", ["nonsense", "judged"])
def test_what_cannot_be_traced_is_one_sentence_in_its_place(
    name: str, answers: Mapping[str, Any]
) -> None:
    assert isinstance(answers[name], TraceError)
    assert len(answers[name].problems) == 1


def test_a_trace_is_an_estimate_where_there_is_no_other(cache: Path) -> None:
    found = estimate_by_tracing(request(), cache)
    shape = ModelShape.from_config(CONFIG)
    close = estimate(job(), shape, gpus()[GPU])
    assert sum(part.bytes for part in found.components) == found.total_bytes
    assert found.total_bytes == pytest.approx(close.total_bytes, rel=CLOSE)
    assert (found.num_parameters, found.num_trainable_parameters) == (
        shape.num_parameters,
        close.num_trainable_parameters,
    )
    assert found.verdict == close.verdict and found.why


def test_an_architecture_without_a_closed_form_is_traced(answers: Mapping[str, Any]) -> None:
    phases = answers["no closed form"].phases
    assert phases["backward"] > phases["load"] > 0


def test_a_compiled_job_is_traced_as_it_is_uncompiled(answers: Mapping[str, Any]) -> None:
    compiled = job(torch_compile=True, activation_memory_budget=0.5)
    assert answers["compiled"].phases == answers["plain"].phases
    assert uncompiled(compiled) == job()


def test_paged_states_are_told_apart_from_the_peaks(answers: Mapping[str, Any]) -> None:
    close = estimate(ASKED["paged"].job, ModelShape.from_config(CONFIG), gpus()[GPU])
    assert answers["paged"].paged_bytes == close.pageable_bytes > answers["plain"].paged_bytes == 0


def test_the_start_of_an_adapter_takes_no_memory(answers: Mapping[str, Any]) -> None:
    assert answers["pissa"].phases == answers["plain"].phases


def test_dora_takes_more_than_lora(answers: Mapping[str, Any]) -> None:
    assert answers["dora"].peak_allocated_bytes > answers["plain"].peak_allocated_bytes


def ledger_of(kinds: str, indices: Sequence[int]) -> AllocationLog:
    """A model in which every layer keeps its input for the layers behind it, a gradient for those in front of it, and
    needs as much as its kind says while it is at work."""
    ledger = AllocationLog({})
    for phase in ("load", "optimizer_step", "eval"):
        ledger.enter(phase)
    for place, index in enumerate(indices):
        work = {"s": 300, "f": 512, "t": 1024}[kinds[index]]
        for phase, held in (
            ("forward", 4 * place),
            ("backward", 4 * place + 2 * (len(indices) - place)),
        ):
            ledger.enter(f"{phase}/{index}")
            with ledger.temporary(512 * (held + work), "work"):
                pass
    return ledger


@pytest.mark.parametrize(
    "kinds",
    ["s" * 9, "ssssfss", "sssssfss", "sssssf" * 5, "f" + "s" * 20, "sf", "ssssssstt", "sst"],
)
def test_a_model_is_extended_where_the_same_layers_work(kinds: str) -> None:
    whole = {
        segment: peak.num_bytes
        for segment, peak in ledger_of(kinds, range(len(kinds))).peaks.items()
    }
    found, _ = extrapolate(kinds, lambda indices: ledger_of(kinds, indices))
    assert found["forward"] == max(
        size for segment, size in whole.items() if segment.startswith("forward")
    )
    assert found["backward"] == max(
        size for segment, size in whole.items() if segment.startswith("backward")
    )
    assert len(shallow_layers(kinds)) <= min(len(kinds), 4 + 2 * len(set(kinds)))


# The estimate against the trace


def _parameter(case: Case) -> Any:
    return pytest.param(
        case,
        id=case.name,
        marks=[] if case.name in (*QUICK, "embedding and head") else [pytest.mark.slow],
    )


@pytest.mark.parametrize("case", [_parameter(case) for case in CASES.values()])
def test_the_estimate_agrees_with_the_trace(
    case: Case, answers: Mapping[str, TraceResult | TraceError]
) -> None:
    traced = answers[case.name]
    assert isinstance(traced, TraceResult), str(traced)
    error = agreement(case, traced).error
    assert abs(error) <= CLOSE, f"estimated {error:+.2%}"


def test_the_quick_cases_are_some_of_many() -> None:
    assert set(QUICK) <= set(CASES)
    assert len(CASES) >= 60
