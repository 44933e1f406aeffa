"""Test that a damaged, removed or unreadable run costs its own part of the page only."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from core import runs
from core.after_training.export import card
from core.runs import Home, edits
from core.runs.sentences import seconds_left
from core.training.contract.files import write_json
from tests.builders.fake_runs import bare_run, write_metrics
from tests.builders.page import FormPage, looking_at
from ui.handlers import Handlers
from ui.render import plots

ODD = ("null", "7", "[1]", '{"step": "x"}', '{"prompt": "a"}', '{"step": 1, "prompt": 3}', "{")
NUM_RESUMES = 300


@pytest.mark.parametrize("name", ["samples.jsonl", "estimate.json", "metrics.jsonl", "status.json"])
@pytest.mark.parametrize("text", ODD)
def test_an_odd_file_of_the_newest_run_does_not_break_the_page(
    handlers: Handlers, home: Home, name: str, text: str
) -> None:
    (bare_run(home, "odd") / name).write_text(text + "\n")
    assert "odd" in handlers.runs.on_load()["run_list"]


@pytest.mark.parametrize("value", ["text", [1], {"a": 1}, True, 1e400])
def test_odd_values_of_an_estimate_are_left_out(home: Home, value: object) -> None:
    folder = bare_run(home, "odd")
    names = ("total_bytes", "phases", "speed", "peak_allocated_bytes", "peak_tokens_per_second")
    write_json(folder / "estimate.json", dict.fromkeys(names, value))
    assert runs.read(home, "odd").prediction().total_bytes is None


def test_a_panel_that_cannot_be_drawn_says_so(
    handlers: Handlers, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare_run(home, "odd")

    def fail(_run: object) -> str:
        raise KeyError("step")

    monkeypatch.setitem(panels_of_runs(), "answers", fail)
    shown = handlers.runs.on_load()
    assert "This part cannot be read" in shown["answers"]
    assert "sft" in shown["tiles"]


@pytest.mark.parametrize("part", ["show_results", "show_panel"])
def test_a_group_of_panels_that_fails_costs_only_itself(
    handlers: Handlers, home: Home, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    bare_run(home, "odd")

    def fail(*_run: object, **_is_new: bool) -> dict[str, object]:
        raise RecursionError

    monkeypatch.setattr(f"ui.handlers.results.{part}", fail)
    assert "sft" in handlers.runs.on_load()["tiles"]


def test_a_deeply_nested_manifest_holds_no_facts(home: Home) -> None:
    place = bare_run(home, "deep") / "data" / "manifest.json"
    place.parent.mkdir(exist_ok=True)
    place.write_text("[" * 100_000)
    assert "Data" in card.new_card(runs.read(home, "deep"), "a/b", "merged")


def panels_of_runs() -> dict[str, Callable[[Any], str]]:
    from ui.handlers.run_panel import RUN_PANELS

    assert isinstance(RUN_PANELS, dict)
    return RUN_PANELS


def test_an_unreadable_run_is_named_and_can_be_deleted(handlers: Handlers, home: Home) -> None:
    (bare_run(home, "torn") / "job.json").write_text('{"stage": "sft"')
    shown = handlers.runs.on_load()
    assert "<b>torn</b>" in shown["unreadable"]
    shown = handlers.runs.on_delete_unreadable("torn", **looking_at())
    assert shown["unreadable"] == ""
    assert edits.deleted(home) == ("torn",)


def test_a_run_of_a_newer_version_says_so(handlers: Handlers, home: Home) -> None:
    write_json(bare_run(home, "newer") / "job.json", {"stage": "sft", "teleport": True})
    said = handlers.runs.on_load()["unreadable"]
    assert "of a newer version of Tailor, which added teleport" in said


@pytest.mark.parametrize("event", ["on_stop", "on_resume"])
def test_a_run_that_another_tab_deleted_is_said_to_be_gone(
    handlers: Handlers, home: Home, event: str
) -> None:
    bare_run(home, "gone")
    edits.delete(home, "gone")
    shown = getattr(handlers.runs, event)(**looking_at("gone"))
    assert "is not there any more" in shown["run_message"]


def test_a_shown_run_that_was_deleted_is_said_to_be_gone(handlers: Handlers) -> None:
    shown = handlers.runs.on_view(**looking_at("gone"))
    assert "is not there any more" in shown["run_header"]


def test_duplicating_a_deleted_run_says_that_it_is_gone(page_form: FormPage) -> None:
    shown = page_form.fire(page_form.handlers.runs.on_duplicate, "form_state", run_id="gone")
    assert "not there any more" in shown["run_message"]


def test_resumes_are_drawn_as_one_line(home: Home) -> None:
    folder = bare_run(home, "patient")
    for step in range(1, NUM_RESUMES + 1):
        write_metrics(folder, range(step, step + 1), resumed_from=step)
    drawn = plots.figure(plots.PLOTS["loss"], runs.read(home, "patient"))
    assert [trace.name for trace in drawn.data] == ["train", "smoothed", "resumed"]
    assert len(drawn.data[-1].x) == 3 * NUM_RESUMES


def test_a_pause_does_not_change_the_time_left(home: Home) -> None:
    folder = bare_run(home, "paused")
    for step in range(1, 11):
        write_metrics(folder, range(step, step + 1), time=step + (1000 if step > 5 else 0))
    fields = {"state": "running", "step": 10, "max_steps": 20}
    write_json(folder / "status.json", fields)
    running = replace(runs.read(home, "paused"), state="running")
    assert seconds_left(running) == 10
