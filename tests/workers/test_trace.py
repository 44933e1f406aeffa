"""Trace of one training step, and the memory estimate compared with it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import pytest

from benchmarks.stage_table import TRAINABLE
from benchmarks.trace_agreement import GPU, QUICK, SIZES, Case, agreement, cases
from core.job import JobSpec, TraceError
from core.memory import estimate, trace_check
from core.memory.estimate import MemoryEstimate
from core.memory.trace_check import (
    FIELDS,
    FIELDS_WITHOUT_MEMORY,
    TraceRequest,
    TraceResult,
    estimate_by_tracing,
    trace_all,
    trace_peak_memory,
    uncompiled,
)
from core.models import ModelShape, gpus
from core.training.contract.job import Job
from core.training.contract.methods import METHODS

pytestmark = pytest.mark.training

MAX_ERROR = 0.02
MIN_CASES = 60
CONFIG: Mapping[str, Any] = {"model_type": "llama", **SIZES}
TINY_CONFIG = {**CONFIG, "num_hidden_layers": 2, "hidden_size": 64, "vocab_size": 128}

FLOAT32_PARTS: Mapping[str, Mapping[str, object]] = {
    "embedding and head": {"modules_to_save": "embed_tokens,lm_head"},
    "a layer": {"modules_to_save": "down_proj", "target_modules": "q_proj"},
    "a head that scores": {"stage": "reward"},
}
"""Parts that train whole over a base in float16, and therefore in float32."""


def make_job(**fields: object) -> JobSpec:
    return JobSpec.parse(
        {"gpu": GPU, "max_length": 256, "gradient_accumulation_steps": 1, **fields}
    )


def make_request(config: Mapping[str, Any] = CONFIG, **fields: object) -> TraceRequest:
    return TraceRequest(make_job(**fields), config, gpus()[GPU])


def float32_case(name: str) -> Case:
    fields = {"gpu": "t4", "max_length": 1024, "gradient_accumulation_steps": 8}
    return Case(name, "llama", CONFIG, make_job(**fields, **FLOAT32_PARTS[name]))


CHECKED_METHODS = ("lora", "qlora", "full")


def checked_case(method: str) -> Case:
    """Return a case whose highest phase is the evaluation, because suites are answered in it."""
    fields = {"max_length": 64, "per_device_train_batch_size": 1, "check_steps": 10}
    return Case(f"checks {method}", "llama", CONFIG, make_job(**fields, method=method))


CASES = {
    case.name: case
    for case in (
        *cases(),
        *map(float32_case, FLOAT32_PARTS),
        *map(checked_case, CHECKED_METHODS),
    )
}
REQUESTS = {
    "nonsense": make_request({"model_type": "nonsense"}),
    "compiled": make_request(torch_compile=True),
    "reward model": make_request(
        stage="grpo", reward_model="/judge", max_completion_length=64, gradient_accumulation_steps=8
    ),
    "plain": make_request(),
    "paged": make_request(method="full", optim="paged_adamw_8bit"),
    "pissa": make_request(init_lora_weights="pissa"),
    "dora": make_request(use_dora=True),
    "no formula": make_request({**CONFIG, "model_type": "stablelm", "num_key_value_heads": 16}),
}
Answers = Mapping[str, TraceResult | TraceError]


@pytest.fixture(scope="module")
def reported_shares() -> list[float]:
    """Progress that the child reported."""
    return []


@pytest.fixture(scope="module")
def answers(request: pytest.FixtureRequest, reported_shares: list[float]) -> Answers:
    """Traces of REQUESTS and of all cases that will be tested, from one child."""
    chosen = [
        item.callspec.params["case"]
        for item in request.session.items
        if isinstance(item, pytest.Function)
        and item.function is test_the_estimate_agrees_with_the_trace
    ]
    requests = REQUESTS | {case.name: case.request for case in chosen}
    found = trace_all(requests.values(), reported_shares.append)
    return dict(zip(requests, found, strict=True))


@pytest.fixture(scope="module")
def traced(answers: Answers) -> Mapping[str, TraceResult]:
    """Those that could be traced."""
    return {name: found for name, found in answers.items() if isinstance(found, TraceResult)}


# The trace


def test_a_trace_is_remembered(
    tmp_path: Path, traced: Mapping[str, TraceResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    requested: list[TraceRequest] = []
    shares: list[float] = []

    def trace_once(
        requests: Sequence[TraceRequest], report: Callable[[float], None]
    ) -> Iterator[TraceResult]:
        requested.extend(requests)
        report(0.5)
        yield traced["plain"]

    monkeypatch.setattr(trace_check, "trace_all", trace_once)
    half_written = tmp_path / f"{make_request().key}.json"
    half_written.write_text('{"phases": ')
    for _ in range(2):
        assert trace_peak_memory(make_request(), tmp_path, shares.append) == traced["plain"]
    assert requested == [make_request()], "the second time nothing had to be traced"
    assert shares == [0.5]


def test_a_trace_reports_its_progress(
    traced: Mapping[str, TraceResult], reported_shares: list[float]
) -> None:
    assert len(reported_shares) >= len(traced)
    assert [share for share in reported_shares if not 0 < share <= 1] == []


OTHER_VALUES = {"model": "other/model", "revision": "v2", "lora_alpha": 64.0, "use_rslora": True}


def test_every_field_without_memory_but_one_is_tested() -> None:
    assert {*OTHER_VALUES, "init_lora_weights"} == set(FIELDS_WITHOUT_MEMORY)


@pytest.mark.parametrize("field", OTHER_VALUES)
def test_a_field_without_memory_needs_no_new_trace(field: str) -> None:
    assert make_request(**{field: OTHER_VALUES[field]}).key == make_request().key


def test_a_field_that_decides_memory_needs_a_new_trace() -> None:
    assert make_request(lora_r=32).key != make_request().key


def test_a_trace_has_the_peak_of_every_phase(traced: Mapping[str, TraceResult]) -> None:
    plain = traced["plain"]
    assert set(plain.phases) == {"load", "forward", "backward", "optimizer_step", "eval"}
    assert plain.peak_allocated_bytes == max(plain.phases.values())


def test_more_is_reserved_than_allocated(traced: Mapping[str, TraceResult]) -> None:
    assert traced["plain"].peak_reserved_bytes >= traced["plain"].peak_allocated_bytes


@pytest.mark.parametrize("name", ["nonsense", "reward model"])
def test_a_job_that_cannot_be_traced_has_one_problem(name: str, answers: Answers) -> None:
    answer = answers[name]
    assert isinstance(answer, TraceError)
    assert len(answer.problems) == 1


@pytest.fixture(scope="module")
def traced_estimate(tmp_path_factory: pytest.TempPathFactory) -> MemoryEstimate:
    """Make an estimate by tracing."""
    return estimate_by_tracing(make_request(), tmp_path_factory.mktemp("traces"))


@pytest.fixture(scope="module")
def usual_estimate() -> MemoryEstimate:
    """Make the estimate of the same job by formulas."""
    return estimate(make_job(), ModelShape.from_config(CONFIG), gpus()[GPU])


def test_an_estimate_can_be_made_by_tracing(
    traced_estimate: MemoryEstimate, usual_estimate: MemoryEstimate
) -> None:
    usual_bytes = usual_estimate.total_bytes
    assert traced_estimate.total_bytes == pytest.approx(usual_bytes, rel=MAX_ERROR)
    assert traced_estimate.verdict == usual_estimate.verdict
    assert traced_estimate.why


def test_the_parts_of_an_estimate_by_tracing_add_up(traced_estimate: MemoryEstimate) -> None:
    parts = [part.bytes for part in traced_estimate.components]
    assert sum(parts) == traced_estimate.total_bytes


@pytest.mark.parametrize("name", ["num_parameters", "num_trainable_parameters"])
def test_an_estimate_by_tracing_counts_parameters(
    name: str, traced_estimate: MemoryEstimate, usual_estimate: MemoryEstimate
) -> None:
    assert getattr(traced_estimate, name) == getattr(usual_estimate, name)


def test_an_architecture_without_a_formula_is_traced(traced: Mapping[str, TraceResult]) -> None:
    phases = traced["no formula"].phases
    assert phases["backward"] > phases["load"] > 0


def test_a_compiled_job_is_traced_uncompiled(traced: Mapping[str, TraceResult]) -> None:
    assert traced["compiled"].phases == traced["plain"].phases
    compiled = make_job(torch_compile=True, activation_memory_budget=0.5)
    assert uncompiled(compiled) == make_job()


def test_paged_states_are_not_part_of_the_peaks(traced: Mapping[str, TraceResult]) -> None:
    shape = ModelShape.from_config(CONFIG)
    pageable_bytes = estimate(REQUESTS["paged"].job, shape, gpus()[GPU]).pageable_bytes
    assert traced["paged"].paged_bytes == pageable_bytes > 0
    assert traced["plain"].paged_bytes == 0


def test_the_initialization_of_an_adapter_takes_no_memory(
    traced: Mapping[str, TraceResult],
) -> None:
    assert traced["pissa"].phases == traced["plain"].phases


def test_dora_takes_more_than_lora(traced: Mapping[str, TraceResult]) -> None:
    assert traced["dora"].peak_allocated_bytes > traced["plain"].peak_allocated_bytes


# The fields of a job

JOB_FIELDS = frozenset(field.name for field in fields(Job))


class RecordingJob(Job):
    """Job that remembers which of its fields were read."""

    names_read: ClassVar[set[str]] = set()

    def __getattribute__(self, name: str) -> Any:
        if name in JOB_FIELDS:
            RecordingJob.names_read.add(name)
        return super().__getattribute__(name)


def stage_and_method(stage: str, method: str) -> Any:
    """Return a pair for a test; only the pairs of some kinds are quick."""
    is_quick = (stage, method) in {("sft", "lora-8bit"), ("dpo", "full"), ("grpo", "qlora")}
    return pytest.param(stage, method, marks=[] if is_quick else [pytest.mark.slow])


@pytest.mark.filterwarnings(
    "ignore:`(is_)?gradient_checkpointing:FutureWarning",
    "ignore:Accessing the data pointer of FakeTensor:UserWarning",
)
@pytest.mark.parametrize(
    ("stage", "method"),
    [stage_and_method(stage, method) for stage, method in product(TRAINABLE, METHODS)],
)
def test_the_child_reads_no_field_that_it_does_not_get(
    stage: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A missing field would silently have its default.
    from core.workers.trace.cuda import Card
    from core.workers.trace.trace import trace

    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    monkeypatch.setattr(RecordingJob, "names_read", set())
    lengths = {"max_length": 64, "max_completion_length": 16}
    job = RecordingJob(model="", dataset="", stage=stage, method=method, **lengths)
    trace(job, TINY_CONFIG, Card((8, 9), supports_bf16=True), 1, lambda share: None)
    assert RecordingJob.names_read - set(FIELDS) == set()
    assert RecordingJob.names_read


# The estimate compared with the trace


def case_of(case: Case) -> Any:
    is_quick = case.name in (*QUICK, "embedding and head", "checks lora")
    return pytest.param(case, id=case.name, marks=[] if is_quick else [pytest.mark.slow])


@pytest.mark.parametrize("case", [case_of(case) for case in CASES.values()])
def test_the_estimate_agrees_with_the_trace(case: Case, answers: Answers) -> None:
    answer = answers[case.name]
    assert isinstance(answer, TraceResult), str(answer)
    error = agreement(case, answer).error
    assert abs(error) <= MAX_ERROR, f"estimated {error:+.2%}"


OTHER_EVALUATIONS: Mapping[str, Mapping[str, object]] = {
    "kto": {"per_device_train_batch_size": 8},
    "grpo": {
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 8,
        "num_generations": 8,
        "max_completion_length": 64,
        "eval_fraction": 0.1,
    },
}
"""Stage -> a job whose evaluations take another number of rows at once than its training."""


@pytest.mark.slow
@pytest.mark.parametrize("stage", OTHER_EVALUATIONS)
def test_an_evaluation_of_other_rows_agrees_with_the_trace(stage: str) -> None:
    job = make_job(stage=stage, method="lora", **OTHER_EVALUATIONS[stage])
    (traced,) = trace_all([TraceRequest(job, CONFIG, gpus()[GPU])])
    assert isinstance(traced, TraceResult), str(traced)
    phases = estimate(job, ModelShape.from_config(CONFIG), gpus()[GPU]).phases
    assert phases["eval"] == pytest.approx(traced.phases["eval"], rel=MAX_ERROR)


@pytest.mark.parametrize("method", ["lora"])
def test_the_answers_to_suites_are_in_the_phase_of_evaluations(method: str, answers: Answers):
    case = checked_case(method)
    traced = answers.get(case.name)
    if not isinstance(traced, TraceResult):
        pytest.skip("its trace was not chosen")
    phases = estimate(case.job, ModelShape.from_config(case.config), case.gpu).phases
    assert max(traced.phases, key=traced.phases.__getitem__) == "eval"
    assert phases["eval"] == pytest.approx(traced.phases["eval"], rel=MAX_ERROR)


def test_the_quick_cases_are_some_of_many() -> None:
    assert set(QUICK) <= set(CASES)
    assert len(CASES) >= MIN_CASES
