"""The exact check: which job is traced, and when the answer is final."""

from collections.abc import Iterator

import pytest

from core.resolve import ResolvedJob, resolve
from core.runs import Home
from core.speed import RowStatistics
from tests.builders.page import FormPage, demo
from ui.handlers.trace import TraceTasks

MEASURED = RowStatistics(300, 40.0, 60, 80)
LONGER = RowStatistics(300, 40.0, 60, 81)


def by_profile(rows: RowStatistics | None = None) -> ResolvedJob:
    return resolve(demo(profile="fastest"), (), rows)


@pytest.fixture
def tasks(home: Home) -> Iterator[TraceTasks]:
    """Return tasks that trace nothing."""
    return TraceTasks(home, trace=lambda *asked: asked)  # type: ignore[arg-type, return-value]


def test_a_job_is_not_traced_before_it_is_asked_for(tasks: TraceTasks) -> None:
    assert tasks.find(by_profile()) is None


def test_the_trace_of_a_job_is_found_again(tasks: TraceTasks) -> None:
    assert tasks.ask(by_profile()) is tasks.find(by_profile())


def test_a_job_is_traced_again_once_its_rows_are_measured(tasks: TraceTasks) -> None:
    early = tasks.ask(by_profile())
    found = tasks.find(by_profile(MEASURED))
    assert found is not None
    assert found is not early


def test_an_answer_for_measured_rows_is_final(tasks: TraceTasks) -> None:
    tasks.ask(by_profile())
    tasks.find(by_profile(MEASURED))
    tasks.note_shown(by_profile(MEASURED))
    assert tasks.find(by_profile(LONGER)) is None


def test_a_check_of_a_job_that_cannot_run_says_why(page_form: FormPage) -> None:
    page_form.form["lora_r"] = -1
    shown = page_form.handlers.trace.on_check_exactly(**page_form.form)
    assert "give 1 or more" in shown["trace"]


def test_a_page_that_asked_for_nothing_shows_no_trace(page_form: FormPage) -> None:
    shown = page_form.edit()
    assert shown["trace"] == ""
    assert shown["trace_timer"].active is False
