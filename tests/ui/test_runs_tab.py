"""Test the Runs tab: start, queue, stop, annotate, delete and duplicate a run, and show it."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from core import runs
from core.job import JobSpec
from core.resolve import default_fields
from core.runs import Home, Run, edits, launch, queue
from core.training.contract.files import write_json
from tests.builders.fake_runs import NEVER_END, NewRun, eventually
from tests.builders.page import LLAMA, FormPage, demo, llama, looking_at
from ui.handlers import Handlers
from ui.render import run as run_panel

SECONDS_TO_TRAIN = 20


def start(handlers: Handlers, **changes: object) -> str:
    """Start a run of the demo job. Return its id."""
    return str(handlers.runs.on_start(**demo(**changes))["run_id"])


def finish(handlers: Handlers, **changes: object) -> Run:
    """Return a run that has finished."""
    return launch.wait(handlers.home, start(handlers, **changes), SECONDS_TO_TRAIN)


def ended(run: Run, **status: object) -> Run:
    """Return a run after its program has written this status and ended."""
    write_json(run.folder / "status.json", status)
    return runs.read(run.home, run.id)


# Start and watch


def test_start_makes_a_run_and_shows_it(handlers: Handlers) -> None:
    shown = handlers.runs.on_start(**demo())
    (run,) = runs.listing.list_runs(handlers.home)
    assert shown["run_id"] == run.id
    assert run.id in shown["run_header"]
    assert shown["tabs"]["selected"] == "runs"


def test_a_started_run_trains(handlers: Handlers) -> None:
    assert finish(handlers).state == "finished"


def test_a_tick_signals_a_change(handlers: Handlers) -> None:
    run = finish(handlers)
    assert handlers.runs.on_tick("before", **looking_at(run.id)).keys() == {"changed"}


def test_a_change_draws_the_new_metrics(handlers: Handlers) -> None:
    run = finish(handlers)
    shown = handlers.runs.on_changed("before", **looking_at(run.id))
    assert "loss" in json.loads(shown["figures"])


def test_nothing_is_drawn_while_nothing_changes(handlers: Handlers) -> None:
    run = finish(handlers)
    eventually(lambda: runs.read(run.home, run.id), lambda _: (run.folder / "exit.json").exists())
    fingerprint = handlers.runs.on_changed("before", **looking_at(run.id))["fingerprint"]
    assert handlers.runs.on_tick(fingerprint, **looking_at(run.id)) == {}
    assert handlers.runs.on_changed(fingerprint, **looking_at(run.id)) == {}


def test_a_tick_before_the_page_is_loaded_is_ignored(handlers: Handlers) -> None:
    start(handlers, seed=NEVER_END)
    assert handlers.runs.on_tick("", **looking_at()) == {}


def test_a_page_without_a_run_shows_the_first_one(handlers: Handlers) -> None:
    run_id = start(handlers, seed=NEVER_END)
    shown = handlers.runs.on_changed("before", **looking_at())
    assert shown["run_id"] == run_id
    assert run_id in shown["run_header"]


def test_a_change_leaves_the_choice_of_a_run_alone(handlers: Handlers) -> None:
    run_id = start(handlers, seed=NEVER_END)
    assert "run_id" not in handlers.runs.on_changed("before", **looking_at(run_id))


def test_a_new_page_shows_the_running_run_first(handlers: Handlers, home: Home) -> None:
    run_id = start(handlers, seed=NEVER_END)
    shown = Handlers(home).runs.on_load()
    assert shown["run_id"] == run_id
    assert shown["tabs"]["selected"] == "runs"


def test_a_running_run_is_shown_before_a_queued_one(handlers: Handlers, home: Home) -> None:
    running = start(handlers, seed=NEVER_END)
    queued = start(handlers, seed=NEVER_END)
    assert [run.id for run in queue.waiting(home)] == [queued]
    assert handlers.runs.on_load()["run_id"] == running
    assert handlers.runs.on_active_run()["run_id"] == running


def test_what_a_handler_returns_can_leak_no_file(handlers: Handlers) -> None:
    start(handlers)
    for name, value in handlers.runs.on_load().items():
        assert isinstance(value, str | int | float | dict), name


# The queue


def test_a_second_run_waits_in_the_queue(handlers: Handlers, home: Home) -> None:
    start(handlers, seed=NEVER_END)
    second = start(handlers)
    third = start(handlers)
    assert [run.id for run in queue.waiting(home)] == [second, third]


def test_a_queued_run_is_moved(handlers: Handlers, home: Home) -> None:
    start(handlers, seed=NEVER_END)
    second = start(handlers)
    third = start(handlers)
    shown = handlers.runs.on_move("up", **looking_at(third))
    assert [run.id for run in queue.waiting(home)] == [third, second]
    assert shown["move_up"]["visible"] is True


def test_a_queued_run_leaves_the_queue(handlers: Handlers, home: Home) -> None:
    start(handlers, seed=NEVER_END)
    second = start(handlers)
    assert handlers.runs.on_view(**looking_at(second))["stop"]["value"] == "Leave queue"
    handlers.runs.on_stop(**looking_at(second))
    assert queue.waiting(home) == ()


def test_a_start_is_an_addition_to_the_queue_while_a_run_is_active(handlers: Handlers) -> None:
    assert handlers.runs.on_load()["start"]["value"] == "Start training"
    start(handlers, seed=NEVER_END)
    assert handlers.runs.on_load()["start"]["value"] == "Add to queue"


# Name, search, trash


def annotate(handlers: Handlers, run: Run, title: str, tags: str = "", notes: str = "") -> None:
    view = looking_at(run.id, about_run=run.id)
    handlers.runs.on_save_about(title, tags, notes, **view)


def test_a_run_is_named_and_its_name_is_escaped(handlers: Handlers) -> None:
    run = finish(handlers)
    annotate(handlers, run, "My <b>first</b>")
    assert "My &lt;b&gt;first" in handlers.runs.on_view(**looking_at(run.id))["run_list"]


@pytest.mark.parametrize(("search", "is_found"), [("pip", True), ("nothing", False)])
def test_runs_are_searched(handlers: Handlers, search: str, is_found: bool) -> None:
    run = finish(handlers)
    annotate(handlers, run, "First", tags="try, pip")
    shown = handlers.runs.on_view(**looking_at(run_search=search))
    assert (run.id in shown["run_list"]) is is_found


def test_a_deleted_run_is_restored(handlers: Handlers, home: Home) -> None:
    run = finish(handlers)
    assert handlers.runs.on_delete(**looking_at(run.id))["restore"]["visible"] is True
    assert runs.listing.list_runs(home) == ()
    assert handlers.runs.on_restore(**looking_at())["run_id"] == run.id


def test_the_trash_is_emptied(handlers: Handlers, home: Home) -> None:
    run = finish(handlers)
    handlers.runs.on_delete(**looking_at(run.id))
    shown = handlers.runs.on_empty_trash(**looking_at())
    assert edits.deleted(home) == ()
    assert shown["restore"]["visible"] is False


def test_a_restore_without_a_deleted_run_shows_none(handlers: Handlers) -> None:
    assert handlers.runs.on_restore(**looking_at())["run_id"] == ""


def test_the_boxes_are_filled_when_another_run_is_shown(handlers: Handlers) -> None:
    first = start(handlers)
    assert handlers.runs.on_view(**looking_at(first))["about_run"] == first
    assert "notes" not in handlers.runs.on_view(**looking_at(first, about_run=first))


def test_notes_are_saved_to_the_run_that_they_were_written_for(
    handlers: Handlers, home: Home
) -> None:
    first, second = start(handlers), start(handlers)
    late = looking_at(second, about_run=first)
    shown = handlers.runs.on_save_about("", "", "Of the first.", **late)
    assert shown["about_run"] == second
    assert shown["notes"] == ""
    assert [runs.read(home, each).about.notes for each in (first, second)] == ["Of the first.", ""]


# Comparison


def test_two_runs_are_compared(handlers: Handlers) -> None:
    ids = [finish(handlers, lora_r=rank).id for rank in (3, 5)]
    shown = handlers.runs.on_view(**looking_at(ids[0], compared=" ".join(ids)))
    assert shown["comparison"]["visible"] is True
    assert "lora_r" in shown["differences"]
    assert "comparison" in json.loads(shown["figures"])


def test_one_run_is_no_comparison(handlers: Handlers) -> None:
    run = finish(handlers)
    shown = handlers.runs.on_view(**looking_at(run.id, compared=run.id))
    assert shown["comparison"]["visible"] is False


# A run fills the form


def filled(page: FormPage, shown: Mapping[str, Any]) -> dict[str, object]:
    """Return the form once it was filled, and the edit that follows is answered."""
    page.receive(dict(shown))
    page.edit()
    return page.form


def test_a_run_is_duplicated(handlers: Handlers, page_form: FormPage) -> None:
    run = finish(handlers, lora_r=5)
    page_form.edit()
    state = page_form.states["form_state"]
    form = filled(page_form, handlers.runs.on_duplicate(run.id, state))
    assert (form["lora_r"], form["model"]) == (5, "demo")


def test_a_duplicate_does_not_follow_defaults(handlers: Handlers, new_run: NewRun) -> None:
    # These values are defaults of the demo, which the form holds before, and not of this job.
    run = new_run(**llama("qlora", max_length=256, profile="custom"))
    page = FormPage(handlers)
    page.edit()
    form = filled(page, handlers.runs.on_duplicate(run.id, page.states["form_state"]))
    assert (form["model"], form["max_length"], form["profile"]) == (LLAMA, 256, "custom")


def test_the_next_stage_continues_from_the_result(handlers: Handlers) -> None:
    run = finish(handlers)
    page = FormPage(handlers)
    form = filled(page, handlers.runs.on_next_stage(run.id, page.states["form_state"]))
    assert form["stage"] == "dpo"
    assert form["adapter"] == str(run.folder / "output")
    assert form["learning_rate"] == default_fields("demo", "lora", "dpo")["learning_rate"]


def test_a_run_that_is_not_finished_has_no_next_stage(handlers: Handlers) -> None:
    run_id = start(handlers, seed=NEVER_END)
    page = FormPage(handlers)
    assert handlers.runs.on_next_stage(run_id, page.states["form_state"]) == {}


@pytest.fixture
def diverged(new_run: NewRun) -> Run:
    """Return a run whose loss became no number."""
    status = {"state": "failed", "error": "The loss is no number.", "cause": "diverged"}
    return ended(new_run(), **status)


def test_a_failed_run_says_what_would_help(handlers: Handlers, diverged: Run) -> None:
    shown = handlers.runs.on_view(**looking_at(diverged.id))
    assert "Learning rate" in shown["retry_0"]["value"]
    assert "too large" in shown["run_header"]


def test_a_retry_fills_the_form_with_the_change(handlers: Handlers, diverged: Run) -> None:
    page = FormPage(handlers)
    page.edit()
    shown = handlers.runs.on_retry(0, diverged.id, page.states["form_state"])
    rate = diverged.job.learning_rate
    assert filled(page, shown)["learning_rate"] == pytest.approx(rate / 5)


def test_a_retry_keeps_its_change_under_a_profile(handlers: Handlers, new_run: NewRun) -> None:
    run = new_run(**llama("qlora", profile="fastest"))
    out_of_memory = ended(run, state="failed", error="CUDA out of memory", cause="out_of_memory")
    page = FormPage(handlers, llama("qlora", profile="fastest"))
    page.edit()
    shown = handlers.runs.on_retry(0, out_of_memory.id, page.states["form_state"])
    change = {name: shown[name] for name in shown["form_state"].set_by_user}
    assert change
    form = filled(page, shown)
    assert {name: form[name] for name in change} == change


def test_advice_that_is_not_there_fills_nothing(handlers: Handlers, diverged: Run) -> None:
    page = FormPage(handlers)
    assert handlers.runs.on_retry(99, diverged.id, page.states["form_state"]) == {}


# What a run shows


@pytest.mark.parametrize(("has_checkpoint", "label"), [(False, "Start again"), (True, "Resume")])
def test_a_run_without_a_checkpoint_starts_again(
    handlers: Handlers, new_run: NewRun, has_checkpoint: bool, label: str
) -> None:
    run = ended(new_run(), state="stopped")
    if has_checkpoint:
        folder = run.folder / "checkpoints" / "checkpoint-3"
        folder.mkdir(parents=True)
        write_json(folder / "manifest.json", {})
    shown = handlers.runs.on_view(**looking_at(run.id))
    assert shown["resume"]["visible"] is True
    assert shown["resume"]["value"] == label


@pytest.mark.parametrize(
    ("baseline", "message"),
    [(0, "Off by more than 5%: backward"), (10, "Without a GPU the process counts")],
)
def test_a_run_shows_predicted_and_measured_memory(
    new_run: NewRun, baseline: int, message: str
) -> None:
    run = new_run()
    predicted = {"total_bytes": 200, "phases": {"forward": 100, "backward": 200}}
    write_json(run.folder / "estimate.json", predicted)
    peaks = {"forward": 101, "backward": 150}
    run = ended(run, state="finished", phase_peak_bytes=peaks, baseline_bytes=baseline)
    assert message in run_panel.memory_table(run)


@pytest.mark.parametrize(
    ("status", "is_paid"),
    [({}, True), ({"device": "CPU", "device_capacity_bytes": 2**34}, False)],
)
def test_only_a_card_that_was_used_costs(
    new_run: NewRun, status: dict[str, object], is_paid: bool
) -> None:
    run = ended(new_run(gpu="rtx-4090"), state="finished", started=1, updated=61, **status)
    assert bool(run.usd) is is_paid


def test_answers_are_escaped(new_run: NewRun) -> None:
    run = new_run()
    attack = "<img src=x onerror=alert(1)>"
    sample = json.dumps({"step": 0, "prompt": attack, "answer": attack})
    (run.folder / "samples.jsonl").write_text(f"{sample}\n")
    assert attack not in run_panel.answers(run)


@pytest.mark.parametrize("run_id", ["../../etc", "no-such-run", "x" * 5000])
def test_a_forged_run_id_shows_no_run(handlers: Handlers, run_id: str) -> None:
    shown = handlers.runs.on_view(**looking_at(run_id))
    assert "This run is not there any more" in shown["run_header"]
    page = FormPage(handlers)
    assert handlers.runs.on_duplicate(run_id, page.states["form_state"]).keys() == {"run_message"}


def test_an_empty_home_says_how_to_begin(handlers: Handlers) -> None:
    assert "No runs yet" in handlers.runs.on_view(**looking_at(""))["run_header"]


def test_every_field_of_a_duplicate_is_one_of_a_job(handlers: Handlers) -> None:
    run = finish(handlers)
    page = FormPage(handlers)
    shown = handlers.runs.on_duplicate(run.id, page.states["form_state"])
    assert JobSpec.model_fields.keys() <= shown.keys()
