"""Test the exact check: the job that is traced, and when the answer is final."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from core.memory.trace_check import TraceRequest, TraceResult
from core.resolve import resolve
from core.runs import Home
from core.speed import RowStatistics
from core.wording import gib
from tests.builders.page import FormPage, demo
from ui.handlers import Handlers
from ui.handlers.answer import Answer
from ui.handlers.trace import TraceHandlers, TraceTasks

MEASURED = RowStatistics(300, 40.0, 60, 80)
LONGER = RowStatistics(300, 40.0, 60, 81)
TRACED = TraceResult(
    phases={"load": 1, "backward": 4},
    peak_allocated_bytes=4,
    peak_reserved_bytes=4,
    seconds=1.0,
    num_parameters=1,
    num_trainable_parameters=1,
    paged_bytes=0,
)


class Traces:
    """Notes the lengths of the rows that it is asked to trace, and traces nothing."""

    def __init__(self) -> None:
        self.lengths: list[int] = []

    def __call__(self, request: TraceRequest, *_more: object) -> TraceResult:
        self.lengths.append(request.job.max_length)
        return TRACED


@pytest.fixture
def traces() -> Traces:
    return Traces()


@pytest.fixture
def trace(handlers: Handlers, home: Home, traces: Traces) -> Iterator[TraceHandlers]:
    return replace(handlers.trace, tasks=TraceTasks(home, traces))


def planned(rows: RowStatistics | None = None, **changes: object) -> Answer:
    """Return the answer to the demo under a profile, once this is known of its rows."""
    values = demo(profile="fastest", **changes)
    return Answer(values, resolved=resolve(values, (), rows))


def final(trace: TraceHandlers, answer: Answer, wanted: str) -> dict[str, Any]:
    """Return what the page shows once a trace is done."""
    shown: dict[str, Any] = trace.on_trace_progress(answer, wanted)
    while shown["trace_timer"].active:
        shown = trace.on_trace_progress(answer, wanted)
    return shown


def test_a_job_is_not_traced_before_it_is_asked_for(trace: TraceHandlers, traces: Traces) -> None:
    assert trace.on_trace_progress(planned(MEASURED), "")["trace"] == ""
    assert traces.lengths == []


def test_a_trace_is_shown_beside_the_estimate(trace: TraceHandlers) -> None:
    wanted = str(trace.on_check_exactly(**demo())["wanted_trace"])
    answer = Answer(demo(), resolved=resolve(demo()))
    assert "<table>" in final(trace, answer, wanted)["trace"]


def test_of_several_devices_one_is_compared(trace: TraceHandlers) -> None:
    form = demo(num_devices=2, parallelism="fsdp")
    wanted = str(trace.on_check_exactly(**form)["wanted_trace"])
    resolved = resolve(form)
    shown = final(trace, Answer(form, resolved=resolved), wanted)["trace"]
    assert "one of 2 devices" in shown
    assert gib(resolved.estimate().phases["load"], 3) in shown


def test_a_job_is_traced_once(trace: TraceHandlers, traces: Traces) -> None:
    for _ in range(2):
        wanted = str(trace.on_check_exactly(**demo())["wanted_trace"])
        final(trace, Answer(demo(), resolved=resolve(demo())), wanted)
    assert len(traces.lengths) == 1


def test_a_job_is_traced_again_once_its_rows_are_measured(
    trace: TraceHandlers, traces: Traces
) -> None:
    wanted = str(trace.on_check_exactly(**demo(profile="fastest"))["wanted_trace"])
    final(trace, planned(), wanted)
    final(trace, planned(MEASURED), wanted)
    assert traces.lengths[-1] == MEASURED.max_tokens


def test_an_answer_for_measured_rows_is_final(trace: TraceHandlers, traces: Traces) -> None:
    wanted = str(trace.on_check_exactly(**demo(profile="fastest"))["wanted_trace"])
    wanted = str(final(trace, planned(MEASURED), wanted)["wanted_trace"])
    assert trace.on_trace_progress(planned(LONGER), wanted)["trace"] == ""
    assert LONGER.max_tokens not in traces.lengths


def test_a_trace_of_another_job_is_not_shown(trace: TraceHandlers) -> None:
    wanted = str(trace.on_check_exactly(**demo(profile="fastest"))["wanted_trace"])
    assert trace.on_trace_progress(planned(MEASURED, lora_r=3), wanted)["trace"] == ""


def test_a_trace_that_failed_is_started_again_by_a_press_only(
    handlers: Handlers, home: Home
) -> None:
    asked = []

    def fail(request: TraceRequest, *_more: object) -> TraceResult:
        asked.append(request)
        raise OSError("no room")

    tasks = TraceTasks(home, fail)
    request = TraceRequest(resolve(demo()).job, {}, resolve(demo()).gpu)
    tasks.find(request).outcome.exception()
    tasks.find(replace(request)).outcome.exception()
    assert len(asked) == 1
    tasks.find(request, retries=True).outcome.exception()
    assert len(asked) == 2


def test_a_check_of_a_job_that_cannot_run_says_why(page_form: FormPage) -> None:
    page_form.form["lora_r"] = -1
    shown = page_form.handlers.trace.on_check_exactly(**page_form.form)
    assert "give 1 or more" in shown["trace"]


def test_a_page_that_asked_for_nothing_shows_no_trace(page_form: FormPage) -> None:
    shown = page_form.edit()
    assert shown["trace"] == ""
    assert shown["trace_timer"].active is False
