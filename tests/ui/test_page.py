"""The page without a browser: its handlers as functions, its wiring through a client of a launched app."""

import io
import json
import socket
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import gradio as gr
import httpx
import pytest
from gradio_client import Client

from core import runs
from core.device import DeviceReading, GpuProcess, this_machine
from core.job import JobSpec
from core.resolve import default_fields, resolve
from core.runs import Home, launch, queue
from core.speed import RowStatistics
from core.training.contract.methods import METHODS
from core.training.contract.stages import STAGES
from tests.builders.fake_runs import NEVER_END, NewRun, eventually
from ui import form, page, server
from ui.gate import GatePolicy
from ui.handlers import Handlers, exact, job
from ui.handlers.data import row_statistics
from ui.render import plots
from ui.render import run as run_panel
from ui.render.estimate import estimate_panel

NO_MARKS: dict[str, Any] = {}


@pytest.fixture
def handlers(home: Home, fake_program: None) -> Iterator[Handlers]:
    made = Handlers(home)
    yield made
    made.previews.close()


def looking_at(run_id: str = "", **more: str) -> dict[str, str]:
    """What the boxes of the Runs tab say."""
    return {"run_id": run_id, "compared": "", "run_search": ""} | more


def data_of(shown: dict[str, Any]) -> Path:
    """The file that became the form's data."""
    return Path(shown["dataset"]["value"])


def demo(**changes: object) -> dict[str, object]:
    """The form as the page shows it first, with some fields changed."""
    return default_fields("demo", "lora") | {"model": "demo", "dataset": "demo"} | changes


def test_every_field_of_a_job_has_one_control() -> None:
    fields = [control.field for control in form.CONTROLS]
    assert sorted(fields) == sorted(JobSpec.model_fields)


def test_every_control_stands_in_a_group_that_the_page_shows() -> None:
    groups = {
        "model",
        "data",
        "method",
        "objective",
        "stage",
        "gpu",
        "profile",
        "main",
        *form.ADVANCED,
    }
    assert {control.group for control in form.CONTROLS} == groups


def test_the_form_starts_at_a_job_that_fits(handlers: Handlers) -> None:
    shown = handlers.on_edit(NO_MARKS, **demo())
    assert "fits" in str(shown["estimate"]) and "rows" in str(shown["data_line"])


def test_the_form_opens_with_the_demos_own_settings() -> None:
    with gr.Blocks():
        fields = {control.field: control.build(control) for control in form.CONTROLS}
    assert {name: field.value for name, field in fields.items()} == default_fields("demo", "lora")


def test_another_model_brings_back_the_usual_settings(handlers: Handlers) -> None:
    shown = handlers.on_edit({"model": "demo", "method": "lora"}, **demo(model="Qwen/Qwen2.5-7B"))
    moved = {
        name: update["value"]
        for name, update in shown.items()
        if isinstance(update, dict) and "value" in update
    }
    assert moved["max_length"] == 2048 and moved["learning_rate"] == 2e-4 and "dataset" not in moved


@pytest.mark.parametrize("method", METHODS)
def test_a_new_method_brings_its_defaults_but_leaves_what_a_person_set(
    handlers: Handlers, method: str
) -> None:
    marks = {"model": "org/some-model", "method": "lora"}
    plain = default_fields("org/some-model", "lora") | {
        "model": "org/some-model",
        "method": method,
        "lora_r": 99,
    }
    shown = handlers.on_edit(marks, **plain)
    moved = {name for name in plain if "value" in shown.get(name, {})}
    assert moved == {
        name for name, value in METHODS[method].defaults.items() if value != plain[name]
    }


def test_what_the_method_has_no_use_for_cannot_be_set(handlers: Handlers) -> None:
    full = handlers.on_edit(
        {"model": "demo", "method": "full"}, **(default_fields("demo", "full") | {"method": "full"})
    )
    assert not full["lora_r"]["interactive"] and not full["bnb_4bit_quant_type"]["interactive"]
    qlora = handlers.on_edit(
        full["marks"], **(default_fields("demo", "qlora") | {"method": "qlora"})
    )
    assert qlora["lora_r"]["interactive"] and qlora["bnb_4bit_quant_type"]["interactive"]


def test_what_was_set_by_hand_stays_while_the_profile_chooses_the_rest(handlers: Handlers) -> None:
    form_now = form.first_values("meta-llama/Llama-3.1-8B", "qlora")
    form_now |= {
        "model": "meta-llama/Llama-3.1-8B",
        "method": "qlora",
        "gpu": "rtx-4090",
        "dataset": "demo",
    }
    shown: dict[str, Any] = {"marks": NO_MARKS}
    for change in ({}, {"per_device_train_batch_size": 3}, {"gpu": "a100-80gb"}, {"gpu": "h200"}):
        form_now |= change
        shown = handlers.on_edit(shown["marks"], **form_now)
        form_now |= {
            name: each["value"]
            for name, each in shown.items()
            if isinstance(each, dict) and "value" in each and name in form_now
        }
        assert form_now["per_device_train_batch_size"] == 3 or not change
    assert "Set by hand" in str(shown["choices"])


@pytest.mark.parametrize("has_settled", [False, True])
def test_what_the_browser_still_holds_of_old_was_not_set_by_hand(
    handlers: Handlers, has_settled: bool
) -> None:
    model = "meta-llama/Llama-3.1-8B"
    early = form.first_values(model, "qlora") | {
        "model": model,
        "method": "qlora",
        "gpu": "rtx-4090",
    }
    first = handlers.on_edit(NO_MARKS, **early)
    planned = {
        name: first[name]["value"]
        for name in ("per_device_train_batch_size", "gradient_accumulation_steps")
    }
    assert all(early[name] != value for name, value in planned.items())
    settled = {"settled": early | planned} if has_settled else {}
    second = handlers.on_edit(first["marks"], settled, **early | {"learning_rate": 1e-4})
    assert ("Set by hand" in str(second["choices"])) is has_settled


def test_a_problem_stands_at_its_field_and_goes_away_again(handlers: Handlers) -> None:
    first = handlers.on_edit({"model": "demo", "method": "lora"}, **demo(lora_r=-1))
    assert "give 1 or more" in first["lora_r"]["info"] and first["lora_r"]["elem_classes"] == [
        "wrong",
        "changed",
    ]
    second = handlers.on_edit(first["marks"], **demo())
    assert second["lora_r"]["info"] == JobSpec.model_fields["lora_r"].description


@pytest.mark.parametrize("value", [float("nan"), None, "abc", -1, 1e9])
def test_a_learning_rate_that_is_none_is_refused_without_a_traceback(
    handlers: Handlers, value: object
) -> None:
    said = str(handlers.on_edit(NO_MARKS, **demo(learning_rate=value))["estimate"])
    assert "cannot run yet" in said and "<b>Learning rate</b>" in said
    assert "Not started" in str(handlers.on_start(**demo(learning_rate=value))["start_message"])


def too_big(**changes: object) -> dict[str, object]:
    """Full fine-tuning of 8B on 24 GB."""
    llama = {
        "model": "meta-llama/Llama-3.1-8B",
        "method": "full",
        "gpu": "rtx-4090",
        "dataset": "demo",
    }
    return default_fields(llama["model"], "full") | llama | changes


def test_a_setting_is_put_back_by_itself(handlers: Handlers) -> None:
    form = demo(lora_r=32, learning_rate=0.5)
    shown = handlers.on_edit(NO_MARKS, **form)
    assert dict(shown["put_back"]["choices"])["LoRA rank: 32, usually 16"] == "lora_r"
    back = handlers.on_put_back("lora_r", shown["marks"], "demo", "lora", "sft")
    shown = handlers.on_edit(back["marks"], **form | {"lora_r": back["lora_r"]})
    assert [name for _text, name in shown["put_back"]["choices"]] == ["learning_rate"]


def test_a_setting_that_is_put_back_is_the_profiles_again(handlers: Handlers) -> None:
    planned = handlers.on_edit(NO_MARKS, **demo(profile="smallest"))
    marks, form = planned["marks"], planned["marks"]["form"]
    by_hand = {**form, "gradient_checkpointing": not form["gradient_checkpointing"]}
    shown = handlers.on_edit(marks, fixes={"settled": form}, **by_hand)
    assert "gradient_checkpointing" in dict(shown["put_back"]["choices"]).values()
    back = handlers.on_put_back("gradient_checkpointing", shown["marks"], "demo", "lora", "sft")
    shown = handlers.on_edit(
        back["marks"], **by_hand | {"gradient_checkpointing": back["gradient_checkpointing"]}
    )
    assert "gradient_checkpointing" not in dict(shown["put_back"]["choices"]).values()
    assert shown["marks"]["form"] == form


def test_the_stage_and_the_method_say_what_they_do(handlers: Handlers) -> None:
    shown = handlers.on_edit(NO_MARKS, **demo(stage="dpo", method="qlora"))
    assert (shown["stage"]["info"], shown["method"]["info"]) == (
        STAGES["dpo"].help,
        METHODS["qlora"].help,
    )


def test_a_job_file_is_shown_and_fills_the_form_again(handlers: Handlers) -> None:
    text = str(handlers.on_edit(NO_MARKS, **demo(lora_r=5))["job_file"])
    shown = handlers.on_job_file(text)
    assert shown["lora_r"] == 5 and shown["model"] == "demo"
    assert "Give 1 or more" in str(handlers.on_job_file('{"lora_r": -1}')["job_file_message"])
    assert "not JSON" in str(handlers.on_job_file("{")["job_file_message"])


def test_a_job_that_is_too_big_gets_buttons_that_make_it_fit(handlers: Handlers) -> None:
    shown = handlers.on_suggest(**too_big())
    assert shown["fix_0"]["value"].startswith("✓ ") and "GiB" in shown["fix_0"]["value"]
    pressed = handlers.on_fix(0, shown["fixes"], **too_big())
    fixed = too_big() | {name: pressed[name] for name in shown["fixes"]["changes"][0]}
    assert 'class="estimate fits"' in str(handlers.on_edit(NO_MARKS, **fixed)["estimate"])


def test_a_fix_for_the_form_before_the_last_edit_only_brings_the_new_forms_fixes(
    handlers: Handlers,
) -> None:
    shown = handlers.on_suggest(**too_big())
    newer = too_big(method="lora")
    assert handlers.on_fix(0, shown["fixes"], **newer) == handlers.on_suggest(**newer)


def test_fixes_are_for_the_form_as_the_edit_left_it_even_if_the_browser_is_late(
    handlers: Handlers,
) -> None:
    early = too_big(profile="fastest")
    marks = handlers.on_edit(NO_MARKS, **early)["marks"]
    shown = handlers.on_suggest(marks, **early)
    assert shown["fixes"]["form"] == marks["form"] != early
    pressed = handlers.on_fix(0, shown["fixes"], **marks["form"])
    assert pressed.items() >= shown["fixes"]["changes"][0].items()


def test_a_fix_can_be_taken_back(handlers: Handlers) -> None:
    form = too_big()
    fixes = {"form": form, "changes": [{"method": "qlora", "learning_rate": 2e-4}]}
    pressed = handlers.on_fix(0, fixes, **form)
    undone = handlers.on_undo(pressed["before_fix"])
    assert (undone["method"], undone["learning_rate"]) == ("full", form["learning_rate"])


def test_a_fix_cannot_be_taken_back_once_the_form_was_edited(handlers: Handlers) -> None:
    form = too_big()
    pressed = handlers.on_fix(0, {"form": form, "changes": [{"method": "qlora"}]}, **form)
    settled = handlers.on_edit(NO_MARKS, {}, pressed["before_fix"], **form | {"method": "qlora"})
    again = handlers.on_edit(
        settled["marks"], {}, settled["before_fix"], **settled["marks"]["form"]
    )
    assert "undo" not in settled and "undo" not in again
    edited = settled["marks"]["form"] | {"method": "lora"}
    by_hand = handlers.on_edit(again["marks"], {}, again["before_fix"], **edited)
    assert by_hand["undo"]["visible"] is False and by_hand["before_fix"] == {}


def test_the_forecast_knows_the_rows_of_further_files(handlers: Handlers, tmp_path: Path) -> None:
    (tmp_path / "more.jsonl").write_text('{"text": "one"}\n' * 100)
    alone, mixed = (
        row_statistics(demo(mix=mix)) for mix in ("", f"{tmp_path / 'more.jsonl'} = 2.5")
    )
    assert alone and mixed and mixed.num_rows == alone.num_rows + 250


def test_the_forecast_tells_time_speed_and_price(handlers: Handlers) -> None:
    shown = handlers.on_suggest(**too_big(method="qlora"))
    assert all(word in str(shown["speed"]) for word in ("about", "tokens/s", "$"))


def test_a_job_that_cannot_run_has_no_buttons(handlers: Handlers) -> None:
    shown = handlers.on_suggest(**too_big(lora_r=-1))
    assert shown["fixes"]["changes"] == [] and not shown["fix_0"]["visible"]


def test_what_fits_where_is_told_for_the_chosen_model(handlers: Handlers) -> None:
    shown = handlers.on_what_fits({}, **demo(model="Qwen/Qwen2.5-7B", max_length=2048))
    table = str(shown["what_fits"])
    assert "Qwen2.5 7B: " in table and "2,048 tokens" in table
    assert "RTX 4090" in table and "QLoRA" in table and "<td>–</td>" in table
    assert "cannot run" in str(handlers.on_what_fits({}, **demo(model="/no/model"))["what_fits"])


def test_what_is_unfolded_follows_the_form_and_what_is_folded_is_not_drawn(
    handlers: Handlers,
) -> None:
    opened = handlers.on_timeline({}, **demo())
    unfolded: dict[str, Any] = dict(opened["unfolded"])
    assert handlers.on_unfolded(unfolded, **demo()) == {}
    redrawn = handlers.on_unfolded(unfolded, **demo(max_length=64))
    assert (
        redrawn["timeline"] != opened["timeline"]
        and redrawn["unfolded"]["timeline"]["max_length"] == 64
    )
    folded = handlers.on_fold("timeline", unfolded)["unfolded"]
    assert handlers.on_unfolded(folded, **demo(max_length=64)) == {}


def test_who_holds_the_card_is_told_and_whether_the_rest_is_enough() -> None:
    found = resolve(too_big(method="qlora")).estimate()
    holder = GpuProcess(pid=41, name="game", used_bytes=6 * 2**30)
    card = DeviceReading(
        0, "RTX 4090", "", 24 * 2**30, 6 * 2**30, 18 * 2**30, (8, 9), "", 0.0, 0.0, (holder,)
    )
    assert "18.0 GiB of it are free now; game 41 6.0 GiB." in estimate_panel(found, card)
    full = replace(card, used_bytes=23 * 2**30, free_bytes=2**30)
    assert "too little" in estimate_panel(found, full)
    assert "free now" not in estimate_panel(found, replace(card, used_bytes=2**20))


def test_a_check_asked_for_while_the_rows_are_measured_is_made_for_the_measured_ones(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact, "trace_peak_memory", lambda *asked: asked)
    checks, by_profile = exact.Checks(home), demo(profile="fastest")
    early = checks.ask(resolve(by_profile, ()))
    measured = resolve(by_profile, (), RowStatistics(300, 40.0, 60, 80))
    found = checks.find(measured)
    assert found is not None and found is not early
    checks.is_shown(measured)
    assert checks.find(resolve(by_profile, (), RowStatistics(300, 40.0, 60, 81))) is None


def test_start_makes_a_run_and_shows_it(handlers: Handlers, home: Home) -> None:
    shown = handlers.on_start(**demo())
    (run,) = runs.list_runs(home)
    assert shown["run_id"] == run.id and run.id in str(shown["run_header"])
    assert launch.wait(home, run.id, 20).state == "finished"


def test_a_tick_says_nothing_when_nothing_changed(handlers: Handlers, home: Home) -> None:
    handlers.on_start(**demo())
    (run,) = runs.list_runs(home)
    eventually(lambda: runs.read(home, run.id), lambda run: (run.folder / "exit.json").exists())
    assert handlers.on_tick("before", **looking_at(run.id)).keys() == {"news"}
    first = handlers.on_news("before", **looking_at(run.id))
    assert "loss" in json.loads(str(first["figures"]))
    for handler in (handlers.on_tick, handlers.on_news):
        assert handler(str(first["seen"]), **looking_at(run.id)) == {}


def test_a_tick_that_was_under_way_at_the_start_does_not_hide_the_new_run(
    handlers: Handlers, home: Home
) -> None:
    handlers.on_start(**demo(seed=1003))
    (run,) = runs.list_runs(home)
    assert handlers.on_tick("", **looking_at()) == {}
    late = handlers.on_news("before", **looking_at())
    assert late["run_id"] == run.id and run.id in str(late["run_header"])
    assert "run_id" not in handlers.on_news("before", **looking_at(run.id))


def test_a_reload_finds_the_running_run(handlers: Handlers, home: Home) -> None:
    handlers.on_start(**demo(seed=1003))
    (run,) = runs.list_runs(home)
    shown = Handlers(home).on_load()
    assert shown["run_id"] == run.id and shown["tabs"]["selected"] == "runs"


def test_a_reload_shows_the_run_that_is_under_way_before_one_that_waits(
    handlers: Handlers, home: Home
) -> None:
    under_way, waiting = (handlers.on_start(**demo(seed=1003))["run_id"] for _ in range(2))
    assert [run.id for run in queue.waiting(home)] == [waiting]
    assert Handlers(home).on_load()["run_id"] == handlers.on_live()["run_id"] == under_way


def test_an_upload_is_kept_by_its_content_and_becomes_the_data(
    handlers: Handlers, home: Home, tmp_path: Path
) -> None:
    dropped = tmp_path / "my rows (1).jsonl"
    dropped.write_text('{"text": "Once"}\n')
    path = data_of(handlers.on_upload(str(dropped)))
    assert path.read_text() == '{"text": "Once"}\n' and path.is_relative_to(home.uploads)
    assert path.name == "my-rows-1.jsonl"


def test_a_bad_line_of_a_mixed_file_is_refused_at_the_start(
    handlers: Handlers, tmp_path: Path, home: Home
) -> None:
    (tmp_path / "more.jsonl").write_text('{"messages": []}\n')
    said = str(handlers.on_start(**demo(mix=str(tmp_path / "more.jsonl")))["start_message"])
    assert (
        "Not started. More files, with weights: 1 line of more.jsonl cannot be used" in said
        and not runs.list_runs(home)
    )


def test_bad_lines_of_the_data_are_listed_and_start_is_refused(
    handlers: Handlers, tmp_path: Path
) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text('{"text": "fine"}\n{"text": \n')
    shown = handlers.on_edit(NO_MARKS, **demo(dataset=str(file)))
    assert "line 2" in str(shown["data_line"])
    assert "line 2" in str(handlers.on_start(**demo(dataset=str(file)))["start_message"])


def test_bad_rows_are_dropped_into_a_new_file_and_the_old_one_stays(
    handlers: Handlers, tmp_path: Path
) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text('{"text": "one"}\n{"text": \n{"text": "two"}\n')
    assert handlers.on_edit(NO_MARKS, **demo(dataset=str(file)))["drop_rows"]["visible"]
    shown = handlers.on_drop_rows(str(file), "sft")
    assert data_of(shown).read_text() == '{"text": "one"}\n{"text": "two"}\n'
    assert "left out: line 2" in str(shown["mended"]) and file.read_text().count("\n") == 3
    assert not handlers.on_edit(NO_MARKS, **demo(dataset=str(data_of(shown))))["drop_rows"][
        "visible"
    ]


def test_a_file_that_can_be_repaired_is_repaired_into_a_new_one(
    handlers: Handlers, tmp_path: Path
) -> None:
    file = tmp_path / "utf16.jsonl"
    file.write_text('{"text": "one"}\n', encoding="utf-16")
    assert handlers.on_edit(NO_MARKS, **demo(dataset=str(file)))["repair"]["visible"]
    shown = handlers.on_repair(str(file), "sft")
    assert data_of(shown).read_text() == '{"text": "one"}\n'


def test_a_second_run_waits_in_the_queue_and_can_be_moved_and_cancelled(
    handlers: Handlers, home: Home
) -> None:
    handlers.on_start(**demo(seed=1003))
    second, third = (handlers.on_start(**demo())["run_id"] for _ in range(2))
    assert [run.id for run in queue.waiting(home)] == [second, third]
    shown = handlers.on_move("up", **looking_at(str(third)))
    assert shown["sooner"]["visible"] and [run.id for run in queue.waiting(home)] == [third, second]
    handlers.on_stop(**looking_at(str(third)))
    assert [run.id for run in queue.waiting(home)] == [second]


def test_a_run_is_named_found_deleted_and_brought_back(handlers: Handlers, home: Home) -> None:
    run_id = str(handlers.on_start(**demo())["run_id"])
    launch.wait(home, run_id, 20)
    handlers.on_annotate("My <b>first</b>", "try, pip", "", **looking_at(run_id, written_of=run_id))
    listed = str(handlers.on_view(**looking_at(run_id, run_search="pip"))["run_list"])
    assert "My &lt;b&gt;first" in listed and run_id not in str(
        handlers.on_view(**looking_at(run_search="nothing"))["run_list"]
    )
    assert (
        handlers.on_delete(**looking_at(run_id))["restore"]["visible"]
        and runs.list_runs(home) == ()
    )
    assert handlers.on_restore(**looking_at())["run_id"] == run_id


def test_what_is_written_about_a_run_never_goes_to_another(handlers: Handlers, home: Home) -> None:
    first, second = (str(handlers.on_start(**demo())["run_id"]) for _ in range(2))
    assert handlers.on_pick(**looking_at(first))["written_of"] == first
    assert "notes" not in handlers.on_view(**looking_at(first, written_of=first))
    late = handlers.on_annotate("", "", "Of the first.", **looking_at(second, written_of=first))
    assert (late["written_of"], late["notes"]) == (second, "")
    assert [runs.read(home, each).about.notes for each in (first, second)] == ["Of the first.", ""]


def test_two_runs_are_compared_by_what_differs(handlers: Handlers, home: Home) -> None:
    ids = [str(handlers.on_start(**demo(lora_r=rank))["run_id"]) for rank in (3, 5)]
    launch.wait(home, ids[0], 20)
    shown = handlers.on_view(**looking_at(ids[0], compared=" ".join(ids)))
    assert shown["comparison"]["visible"] and "lora_r" in str(shown["differences"])
    assert "comparison" in json.loads(str(shown["figures"]))


def test_a_form_that_goes_on_from_a_run_says_so(handlers: Handlers, home: Home) -> None:
    run_id = str(handlers.on_start(**demo())["run_id"])
    launch.wait(home, run_id, 20)
    filled = {
        name: value
        for name, value in handlers.on_next_stage(run_id).items()
        if name in JobSpec.model_fields
    }
    said = str(handlers.on_edit(NO_MARKS, **demo(**filled))["goes_on"])
    assert f"Goes on from the adapter of run {run_id}; the data is the demo" in said
    assert handlers.on_edit(NO_MARKS, **demo())["goes_on"] == ""


def test_a_card_that_was_not_used_is_not_paid_for(new_run: NewRun) -> None:
    run = new_run(gpu="rtx-4090")
    for status, is_paid in (({}, True), ({"device": "CPU", "device_capacity_bytes": 2**34}, False)):
        runs.write_json(
            run.folder / "status.json", {"state": "finished", "started": 1, "updated": 61, **status}
        )
        assert bool(runs.read(run.home, run.id).usd) is is_paid


def test_a_card_that_this_machine_lacks_is_told_beside_the_start(
    handlers: Handlers, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = replace(this_machine(), gpus=())
    monkeypatch.setattr(job, "this_machine", lambda: machine)
    said = "This machine has no RTX 4090: it will train on its CPU."
    assert said in str(handlers.on_edit(NO_MARKS, **demo(gpu="rtx-4090"))["start_message"])
    card = DeviceReading(
        0, "NVIDIA GeForce RTX 4090", "", 24 * 2**30, 0, 24 * 2**30, (8, 9), "", 0.0, 0.0, ()
    )
    machine = replace(machine, gpus=(card,))
    for gpu in ("rtx-4090", "local"):
        assert handlers.on_edit(NO_MARKS, **demo(gpu=gpu))["start_message"] == ""
    assert "train on its RTX 4090" in str(
        handlers.on_edit(NO_MARKS, **demo(gpu="h200"))["start_message"]
    )


def test_a_failed_run_tells_what_would_help_and_fills_the_form_with_it(
    handlers: Handlers, home: Home
) -> None:
    run_id = str(handlers.on_start(**demo(seed=1003))["run_id"])
    launch.kill(runs.read(home, run_id))
    status = {"state": "failed", "error": "The loss is no number.", "cause": "diverged"}
    runs.write_json(runs.read(home, run_id).folder / "status.json", status)
    shown = handlers.on_pick(**looking_at(run_id))
    assert "Learning rate" in shown["remedy_0"]["value"] and "too large" in str(shown["run_header"])
    assert handlers.on_remedy(0, run_id)["learning_rate"] == pytest.approx(2e-3 / 5)


def test_a_dropped_table_becomes_json_lines(handlers: Handlers, tmp_path: Path) -> None:
    dropped = tmp_path / "rows.csv"
    dropped.write_text('question,answer\n"How, many?",7\n')
    shown = handlers.on_upload(str(dropped))
    deadline = time.monotonic() + 60
    while "dataset" not in shown:
        assert time.monotonic() < deadline and shown["cancel_taking"]["visible"]
        time.sleep(0.1)
        shown = handlers.on_taking(str(shown["taken"]))
    assert json.loads(data_of(shown).read_text()) == {"question": "How, many?", "answer": "7"}


def test_columns_of_unknown_names_are_named_by_hand(handlers: Handlers, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"Frage": "Wer?", "Antwort": "Pip", "n": 1}\n')
    assert handlers.on_edit(NO_MARKS, **demo(dataset=str(file)))["columns_panel"]["open"]
    asked = handlers.on_kind("prompt and completion", ["Frage", "Antwort", "n"])
    assert [asked[box]["label"] for box in ("column_0", "column_1")] == ["prompt", "completion"]
    named = {
        "kind": "prompt and completion",
        "column_0": "Frage",
        "column_1": "Antwort",
        "column_2": "",
    }
    shown = handlers.on_map_columns(str(file), "sft", **named)
    known = handlers.on_edit(NO_MARKS, **demo(dataset=str(data_of(shown))))
    assert not known["columns_panel"]["open"] and known["kind"]["value"] == "prompt and completion"
    assert [known[box]["value"] for box in ("column_0", "column_1")] == ["prompt", "completion"]


def test_a_column_that_was_not_named_is_asked_for(handlers: Handlers, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"Frage": "Wer?", "Antwort": "Pip"}\n')
    shown = handlers.on_map_columns(
        str(file), "sft", kind="question and answer", column_0="Frage", column_1=None
    )
    assert "answer" in str(shown["mended"]) and "dataset" not in shown


def test_data_of_another_stage_is_one_press_from_it(handlers: Handlers, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "Who?", "chosen": "Pip.", "rejected": "Who knows."}\n')
    shown = handlers.on_edit(NO_MARKS, **demo(dataset=str(file)))["usual_stage"]
    assert shown["visible"] and "DPO" in shown["value"]
    assert "Data: 1 line " in str(handlers.on_start(**demo(dataset=str(file)))["start_message"])
    assert handlers.on_usual_stage(str(file), "sft") == {"stage": "dpo"}
    assert not handlers.on_edit(NO_MARKS, **demo(dataset=str(file), stage="dpo"))["usual_stage"][
        "visible"
    ]


def test_what_was_brought_once_is_in_the_menu_of_data(handlers: Handlers, tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"text": "{name}"}}\n')
        handlers.on_upload(str(tmp_path / f"{name}.jsonl"))
    shown = [text.partition(" · ")[0] for text, _value in handlers.on_load()["dataset"]["choices"]]
    assert shown[0] == "Demo: meet Pip" and set(shown[1:]) == {"first.jsonl", "second.jsonl"}


def test_data_that_changed_since_it_was_shown_is_not_trained_on(
    handlers: Handlers, tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "one"}\n')
    checked = handlers.on_edit(NO_MARKS, **demo(dataset=str(file)))["dataset_sha256"]["value"]
    file.write_text('{"text": "two"}\n')
    said = str(
        handlers.on_start(**demo(dataset=str(file), dataset_sha256=checked))["start_message"]
    )
    assert "Not started" in said and "changed" in said


def test_the_settings_of_a_run_can_be_used_again(handlers: Handlers, home: Home) -> None:
    handlers.on_start(**demo(lora_r=5))
    (run,) = runs.list_runs(home)
    again = handlers.on_reuse(run.id)
    assert again["lora_r"] == 5 and again["model"] == "demo"


@pytest.mark.parametrize(
    ("baseline", "says"), [(0, "Off by more than 5%: backward"), (10, "On a CPU")]
)
def test_a_run_shows_predicted_against_measured(
    handlers: Handlers, home: Home, baseline: int, says: str
) -> None:
    handlers.on_start(**demo(seed=1003))
    (run,) = runs.list_runs(home)
    launch.kill(run)
    runs.write_json(run.folder / "estimate.json", {"phases": {"forward": 100, "backward": 200}})
    measured = {"phase_peak_bytes": {"forward": 101, "backward": 150}, "baseline_bytes": baseline}
    runs.write_json(run.folder / "status.json", {"state": "finished", **measured})
    assert says in run_panel.memory_table(runs.read(home, run.id))


def test_peoples_text_is_escaped(handlers: Handlers, home: Home, tmp_path: Path) -> None:
    attack = "<img src=x onerror=alert(1)>"
    shown = handlers.on_edit(NO_MARKS, **demo(model=f"/{attack}", dataset=attack))
    assert attack not in str(shown["estimate"])
    handlers.on_start(**demo())
    (run,) = runs.list_runs(home)
    row = json.dumps({"step": 0, "prompt": attack, "answer": attack})
    (run.folder / "samples.jsonl").write_text(f"{row}\n")
    assert attack not in run_panel.answers(run)


def test_what_a_handler_shows_is_text_numbers_and_updates(handlers: Handlers) -> None:
    handlers.on_start(**demo())
    for value in handlers.on_load().values():
        assert isinstance(value, str | int | float | dict)


@pytest.mark.parametrize("plot", plots.PLOTS.values(), ids=lambda plot: plot.id)
def test_every_plot_draws_what_the_metrics_say(
    handlers: Handlers, home: Home, plot: plots.Plot
) -> None:
    handlers.on_start(**demo(seed=1003))
    (run,) = runs.list_runs(home)
    rows = [
        {"step": step, **{trace.key: step * plot.scale for trace in plot.traces}}
        for step in (1, 2, 3)
    ]
    launch.kill(run)
    (run.folder / "metrics.jsonl").write_text("".join(f"{row}\n".replace("'", '"') for row in rows))
    drawn = plots.figure(plot, runs.read(home, run.id))
    assert [trace.name for trace in drawn.data] == [trace.name for trace in plot.traces]
    assert list(drawn.data[0].y) == [1, 2, 3] and drawn.layout.uirevision == run.id


@pytest.mark.parametrize(
    ("capacity", "names"),
    [(3, ["predicted: 2.0 GiB", "the card: 3.0 GiB"]), (30, ["predicted: 2.0 GiB"])],
)
def test_the_memory_plot_has_what_was_predicted_and_a_card_that_is_near(
    new_run: NewRun, capacity: int, names: list[str]
) -> None:
    run = new_run()
    runs.write_json(run.folder / "estimate.json", {"total_bytes": 2**30})
    told = {"state": "running", "baseline_bytes": 2**30, "device_capacity_bytes": capacity * 2**30}
    runs.write_json(run.folder / "status.json", told)
    levels = plots.figure(plots.PLOTS["memory"], runs.read(run.home, run.id)).layout.shapes
    assert [level.name for level in levels] == names and levels[0].y0 == levels[0].y1 == 2
    assert all(level.showlegend for level in levels)


def test_a_run_without_points_has_no_plots(new_run: NewRun) -> None:
    assert plots.figures(new_run()) == plots.figures(None) == "{}"


@pytest.mark.parametrize("num_points", [3, 18, 60])
def test_the_smoothed_loss_of_a_short_run_ends_near_its_last_values(
    new_run: NewRun, num_points: int
) -> None:
    run = new_run()
    losses = [4.0] * (num_points // 2) + [0.00003] * (num_points - num_points // 2)
    rows = (json.dumps({"step": step, "loss": loss}) for step, loss in enumerate(losses, 1))
    (run.folder / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    for drawn in (plots.figure(plots.PLOTS["loss"], run).data[1], plots.comparison([run]).data[0]):
        assert drawn.y[-1] < 0.2
    assert "<b>3e-05</b>" in run_panel.tiles(run)


@pytest.mark.parametrize("has_checkpoint", [False, True])
def test_a_run_without_a_checkpoint_is_started_again_and_not_resumed(
    handlers: Handlers, new_run: NewRun, has_checkpoint: bool
) -> None:
    run = new_run()
    runs.write_json(run.folder / "status.json", {"state": "stopped"})
    if has_checkpoint:
        (run.folder / "checkpoints" / "checkpoint-3").mkdir(parents=True)
        runs.write_json(run.folder / "checkpoints" / "checkpoint-3" / "manifest.json", {})
    shown: dict[str, Any] = handlers.on_pick(**looking_at(run.id))
    assert shown["resume"]["value"] == ("Resume" if has_checkpoint else "Start again")


def test_choices_of_the_form_are_those_of_the_job() -> None:
    with gr.Blocks():
        fields = form.render("optimizer")
    options = [value for _, value in fields["optim"].choices]
    assert options == list(get_args(JobSpec.model_fields["optim"].annotation))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass(frozen=True)
class Wire:
    """Fires the page's events as a browser would: by the event's name, with the values that its inputs show."""

    client: Client
    home: Home

    @property
    def run(self) -> runs.Run:
        """The newest run, as it was left by its program."""
        return launch.wait(self.home, runs.list_runs(self.home)[0].id, 20)

    def fire(self, event: str, **changes: object) -> dict[str, Any]:
        """{elem_id: what came back} of the components that the event changed."""
        components = {each["id"]: each for each in self.client.config["components"]}
        wired = next(
            each for each in self.client.config["dependencies"] if each["api_name"] == event
        )
        inputs = [
            components[number]
            for number in wired["inputs"]
            if components[number]["type"] != "state"
        ]
        values = {each["props"].get("elem_id"): each["props"].get("value") for each in inputs}
        results = self.client.predict(*(values | changes).values(), api_name=f"/{event}")
        outputs = [
            each for number in wired["outputs"] if not (each := components[number]).get("skip_api")
        ]
        named = zip((each["props"].get("elem_id") for each in outputs), results, strict=True)
        return {name: value for name, value in named if value != {"__type__": "update"}}


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    """The page, really served, and a client that presses its buttons."""
    home = Home.find(str(tmp_path_factory.mktemp("wire")))
    handlers = Handlers(home)
    blocks = page.build(handlers)
    server.launch(blocks, home, GatePolicy(), free_port())
    client = Client(blocks.local_url, verbose=False)
    yield Wire(client, home)
    client.close()
    blocks.close(verbose=False)
    handlers.previews.close()


def test_an_edit_goes_through_the_wire_and_back(wire: Wire) -> None:
    shown = wire.fire("on_edit", **{"field-lora_r": -1})
    assert "cannot run yet" in shown["estimate"] and "give 1 or more" in str(shown["field-lora_r"])


def test_a_run_is_started_watched_and_found_through_the_wire(
    wire: Wire, fake_program: None
) -> None:
    shown = wire.fire("on_start")
    run = wire.run
    assert run.id in shown["run-header"] and run.state == "finished"
    shown = wire.fire("on_news", **{"run-id": run.id})
    assert "Finished" in shown["run-header"]
    assert json.loads(shown["figures"])["loss"]["data"][0]["name"] == "train"


def test_a_stop_goes_through_the_wire(wire: Wire, fake_program: None) -> None:
    wire.fire("on_start", **{"field-seed": NEVER_END})
    wire.fire("on_stop", **{"run-id": runs.list_runs(wire.home)[0].id})
    assert wire.run.state == "stopped"


def test_a_bundle_is_downloaded_and_no_other_file_is(wire: Wire, fake_program: None) -> None:
    wire.fire("on_start")
    found = httpx.get(f"{wire.client.src}bundle/{wire.run.id}.zip")
    names = zipfile.ZipFile(io.BytesIO(found.content)).namelist()
    assert any(name.endswith("job.json") for name in names) and not any(
        name.startswith(("/", "..")) for name in names
    )
    assert httpx.get(f"{wire.client.src}bundle/..%2f..%2ftoken.zip").status_code == 404


def test_the_wire_lists_no_api(wire: Wire) -> None:
    assert wire.client.view_api(return_format="dict", print_info=False)["named_endpoints"] == {}
