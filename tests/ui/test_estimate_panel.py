"""Test the estimate panel: fixes and their undo, forecast, cards, and the panels that open."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from core.device import DeviceReading, this_machine
from core.device.cards import GpuProcess
from core.memory import COMPONENTS, timeline
from core.resolve import resolve
from core.runs import Home
from core.wording import COMPONENT_COLOURS, memory
from tests.builders.page import LLAMA, FormPage, llama
from ui.handlers import Handlers, estimate, start
from ui.handlers.panels import on_card, on_close_panel, on_open_panel, on_redraw_panels
from ui.render.estimate import estimate_panel
from ui.render.timeline import timeline as timeline_svg

GIB = 2**30


@pytest.fixture
def too_large(handlers: Handlers) -> FormPage:
    """Return a page with a job that does not fit, its fixes offered."""
    page = FormPage(handlers, llama("full"))
    page.edit()
    page.suggest()
    return page


# Fixes


@pytest.fixture
def adapter_as_model(handlers: Handlers, tmp_path: Path) -> FormPage:
    """Return a page on which an adapter was chosen as model, its cure offered."""
    settings = {"base_model_name_or_path": LLAMA}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    page = FormPage(handlers)
    page.edit(model=str(tmp_path), method="full")
    return page


def test_an_adapter_as_model_is_cured_by_one_click(
    adapter_as_model: FormPage, tmp_path: Path
) -> None:
    shown = adapter_as_model.suggest()
    assert shown["fix_0"]["value"] == "Choose Llama-3.1-8B as model and this as adapter"
    adapter_as_model.press_fix(0)
    chosen = [adapter_as_model.form[name] for name in ("model", "adapter", "method")]
    assert chosen == [LLAMA, str(tmp_path), "lora"]


def test_a_cure_can_be_undone(adapter_as_model: FormPage, tmp_path: Path) -> None:
    adapter_as_model.suggest()
    shown = adapter_as_model.press_fix(0)
    assert shown["undo"].values["model"] == str(tmp_path)


def test_a_job_that_is_too_large_gets_fixes(too_large: FormPage) -> None:
    shown = too_large.suggest()
    assert shown["fix_0"]["visible"] is True
    assert shown["fix_0"]["value"].startswith("✓ ")
    assert "GiB" in shown["fix_0"]["value"]


def test_a_fix_makes_the_job_fit(too_large: FormPage) -> None:
    assert 'class="estimate does_not_fit"' in too_large.edit()["estimate"]
    too_large.suggest()
    too_large.press_fix(0)
    assert 'class="estimate fits"' in too_large.edit()["estimate"]


def test_a_fix_for_an_older_form_is_replaced_by_new_ones(too_large: FormPage) -> None:
    too_large.form["method"] = "lora"
    shown = too_large.press_fix(0)
    too_large.edit()
    assert shown["suggestions"].fixes == too_large.suggest()["suggestions"].fixes
    assert too_large.form["method"] == "lora"


def test_a_fix_is_for_the_form_that_the_profile_has_settled(handlers: Handlers) -> None:
    early = llama("full", profile="fastest")
    page = FormPage(handlers, early)
    page.edit()
    # The browser asks before it has received the plan.
    on_suggest = handlers.estimate.on_suggest
    page.fire(on_suggest, "answer", **early)
    before = dict(page.form)
    page.press_fix(0)
    assert page.form == {**before, **page.states["suggestions"].fixes[0].change}


def test_a_job_that_cannot_run_has_no_fixes(too_large: FormPage) -> None:
    too_large.edit(lora_r=-1)
    shown = too_large.suggest()
    assert [shown[name]["visible"] for name in estimate.FIX_BUTTONS] == [False] * 4


def test_fixes_are_locked_until_they_belong_to_the_form(too_large: FormPage) -> None:
    assert too_large.edit(max_length=1024)["fix_0"]["interactive"] is False
    assert too_large.suggest()["fix_0"]["interactive"] is True


def undo(page: FormPage) -> None:
    page.fire(page.handlers.estimate.on_undo_fix, "undo")
    page.edit()


def test_a_fix_is_undone(too_large: FormPage) -> None:
    before = dict(too_large.form)
    too_large.press_fix(0)
    too_large.edit()
    undo(too_large)
    assert too_large.form == before


def test_undo_stays_while_the_form_is_not_edited(too_large: FormPage) -> None:
    assert too_large.press_fix(0)["undo_fix"]["visible"] is True
    assert "undo_fix" not in too_large.edit()
    assert "undo_fix" not in too_large.edit()


def test_undo_is_hidden_once_the_form_is_edited(too_large: FormPage) -> None:
    too_large.press_fix(0)
    too_large.edit()
    assert too_large.edit(lora_r=9)["undo_fix"]["visible"] is False


def test_undo_does_nothing_once_the_form_was_edited(too_large: FormPage) -> None:
    too_large.press_fix(0)
    too_large.edit(lora_r=9)
    edited = dict(too_large.form)
    undo(too_large)
    assert too_large.form == edited


# Forecast and cards


@pytest.mark.parametrize("word", ["about", "tokens/s", "$"])
def test_the_forecast_says_time_speed_and_price(handlers: Handlers, word: str) -> None:
    assert word in FormPage(handlers, llama("qlora")).edit()["speed"]


def card(used_gib: float, *processes: GpuProcess) -> DeviceReading:
    """Return a reading of a card of 24 GiB."""
    total, used = 24 * GIB, int(used_gib * GIB)
    name = "NVIDIA GeForce RTX 4090"
    return DeviceReading(0, name, "", total, used, total - used, (8, 9), "", 0.0, 0.0, processes)


def test_the_programs_that_use_the_card_are_named() -> None:
    game = GpuProcess(pid=41, name="game", used_bytes=6 * GIB)
    found = resolve(llama("qlora")).estimate()
    assert "18.0 GiB are free now; game 41 6.0 GiB." in estimate_panel(found, [card(6, game)])


def test_a_card_without_enough_free_memory_is_pointed_out() -> None:
    found = resolve(llama("qlora")).estimate()
    assert "too little" in estimate_panel(found, [card(23)])


def test_an_idle_card_is_not_mentioned() -> None:
    found = resolve(llama("qlora")).estimate()
    assert "free now" not in estimate_panel(found, [card(0.001)])


@pytest.mark.parametrize(
    ("cards", "gpu", "message"),
    [
        ((), "rtx-4090", "This machine has no RTX 4090: it will train on its CPU."),
        ((card(0),), "h200", "it will train on its RTX 4090"),
    ],
)
def test_a_card_that_this_machine_lacks_is_pointed_out(
    page_form: FormPage,
    monkeypatch: pytest.MonkeyPatch,
    cards: tuple[DeviceReading, ...],
    gpu: str,
    message: str,
) -> None:
    machine = replace(this_machine(), gpus=cards)
    monkeypatch.setattr(start, "this_machine", lambda: machine)
    assert message in page_form.edit(gpu=gpu)["start_message"]


def test_a_cluster_need_not_have_the_cards_of_this_machine(page_form: FormPage) -> None:
    assert page_form.edit(gpu="h200")["start_message"]
    on_where = page_form.handlers.placing.on_where
    assert page_form.fire(on_where, "answer", where="ray")["start_message"] == ""
    assert page_form.fire(on_where, "answer", where="here")["start_message"]
    assert page_form.edit(gpu="rtx-4090", where="ray")["start_message"] == ""


@pytest.mark.parametrize("gpu", ["rtx-4090", "local"])
def test_a_card_that_this_machine_has_is_not_mentioned(
    page_form: FormPage, monkeypatch: pytest.MonkeyPatch, gpu: str
) -> None:
    machine = replace(this_machine(), gpus=(card(0),))
    monkeypatch.setattr(start, "this_machine", lambda: machine)
    assert page_form.edit(gpu=gpu)["start_message"] == ""


def test_a_job_that_continues_from_a_run_says_so(page_form: FormPage, home: Home) -> None:
    adapter = home.runs / "20260101-000000-demo-lora" / "output"
    adapter.mkdir(parents=True)
    said = page_form.edit(adapter=str(adapter))["continues_message"]
    assert "Continues from the adapter of run 20260101-000000-demo-lora." in said
    assert "The data is the demo" in said


def test_a_job_that_continues_from_no_run_says_nothing(page_form: FormPage) -> None:
    assert page_form.edit()["continues_message"] == ""


def test_text_of_users_is_escaped(page_form: FormPage) -> None:
    attack = "<img src=x onerror=alert(1)>"
    assert attack not in page_form.edit(model=f"/{attack}", dataset=attack)["estimate"]


def test_every_component_has_a_colour_of_its_own() -> None:
    assert COMPONENT_COLOURS.keys() == COMPONENTS.keys()
    assert len(set(COMPONENT_COLOURS.values())) == len(COMPONENT_COLOURS)


# Panels that open


def open_panel(page: FormPage, name: str) -> str:
    return str(page.fire(on_open_panel, "open_panels", "answer", name=name)[name])


def redraw(page: FormPage) -> dict[str, object]:
    return page.fire(on_redraw_panels, "open_panels", "answer")


@pytest.mark.parametrize(
    "word", ["Qwen2.5 7B: ", "2,048-token rows", "RTX 4090", "QLoRA", "<td>–</td>", "Full on 8"]
)
def test_what_fits_where_is_drawn_for_the_model(page_form: FormPage, word: str) -> None:
    page_form.edit(model="Qwen/Qwen2.5-7B")
    assert word in open_panel(page_form, "what_fits")


def test_what_fits_where_says_why_it_cannot_be_drawn(page_form: FormPage) -> None:
    page_form.edit(model="/no/model")
    assert "cannot run" in open_panel(page_form, "what_fits")


def test_a_problem_elsewhere_does_not_hide_what_fits_where(page_form: FormPage) -> None:
    page_form.edit(lora_r=-1)
    assert "<table>" in open_panel(page_form, "what_fits")


def test_an_open_panel_is_redrawn_when_the_job_changes(page_form: FormPage) -> None:
    page_form.edit()
    first = open_panel(page_form, "timeline")
    page_form.edit(max_length=64)
    assert redraw(page_form)["timeline"] != first


def test_an_open_panel_is_not_redrawn_when_nothing_changes(page_form: FormPage) -> None:
    page_form.edit()
    open_panel(page_form, "timeline")
    page_form.edit()
    assert redraw(page_form) == {}


def test_a_closed_panel_is_not_drawn(page_form: FormPage) -> None:
    page_form.edit()
    open_panel(page_form, "timeline")
    page_form.fire(on_close_panel, "open_panels", name="timeline")
    page_form.edit(max_length=64)
    assert redraw(page_form) == {}


def test_the_timeline_leads_to_the_total_of_the_verdict() -> None:
    resolved = resolve({**llama("full"), "optim": "paged_adamw_8bit"})
    assert resolved.model.shape
    found = resolved.estimate()
    drawn = timeline_svg(timeline(resolved.job, resolved.model.shape, resolved.gpu), found)
    assert f"{memory(found.peak_allocated_bytes)} at the peak" in drawn
    assert f"The verdict, {memory(found.total_bytes)}, adds" in drawn
    assert f"Paged optimizer states {memory(found.pageable_bytes)}" in drawn


def test_the_menu_of_models_says_what_the_card_trains() -> None:
    choices = on_card(gpu="rtx-3060", stage="sft")["model"]["choices"]
    labels = {model: label for label, model in choices}
    assert labels["HuggingFaceTB/SmolLM2-135M"].endswith(" · Full fits")
    assert labels["meta-llama/Llama-3.1-70B"].endswith(" · too large")


def test_the_menu_of_models_is_plain_without_a_card() -> None:
    choices = on_card(gpu="local", stage="sft")["model"]["choices"]
    assert not any("fits" in label or "too large" in label for label, _ in choices)


# Several devices


def test_what_each_of_several_devices_holds_is_said(handlers: Handlers) -> None:
    shown = FormPage(handlers, llama("full", num_devices=8)).edit()["estimate"]
    assert "24.0 GiB on each of 8 devices" in shown
    assert ">The bar is that of each of 8 devices: all hold the same.</p>" in shown
    assert "divided among 8 devices, since a copy is too large for one" in shown


@pytest.fixture
def large_page(handlers: Handlers) -> FormPage:
    """Return a page with a model that four cards hold together, and nothing set by a user."""
    large = {"model": "meta-llama/Llama-3.1-70B", "gradient_accumulation_steps": 4}
    return FormPage(handlers, llama("qlora", **large, profile="custom"))


def test_a_form_without_a_profile_takes_an_optimizer_that_can_be_divided(
    large_page: FormPage,
) -> None:
    shown = large_page.edit(num_devices=4)
    assert large_page.form["optim"] == "adamw_torch_fused"
    assert "divided among 4 devices" in shown["estimate"]
    assert "the usual one here, cannot update" in shown["plan"]


def test_an_optimizer_of_a_division_goes_with_it(large_page: FormPage) -> None:
    large_page.edit(num_devices=4)
    large_page.edit(learning_rate=1e-4)
    assert large_page.form["optim"] == "adamw_torch_fused"
    large_page.edit(num_devices=1)
    assert large_page.form["optim"] == "paged_adamw_8bit"


def test_an_optimizer_that_a_user_has_chosen_stays(large_page: FormPage) -> None:
    shown = large_page.edit(num_devices=4, optim="adamw_8bit")
    assert large_page.form["optim"] == "adamw_8bit"
    assert "dividing it fails: adamw_8bit cannot update" in shown["estimate"]


def test_no_optimizer_of_a_division_counts_as_changed(large_page: FormPage) -> None:
    menu = large_page.edit(num_devices=4)["reset_field"]
    assert "optim" not in [value for _label, value in menu["choices"]]


def test_a_form_without_a_profile_keeps_what_a_profile_has_chosen(handlers: Handlers) -> None:
    page = FormPage(handlers, llama("qlora", profile="fastest"))
    page.edit()
    chosen = page.form["optim"]
    page.edit(profile="custom")
    assert page.form["optim"] == chosen == "adamw_torch_fused"


def test_the_rows_of_all_devices_are_counted(handlers: Handlers) -> None:
    shown = FormPage(handlers, llama("qlora", num_devices=4)).edit()["effective_batch"]
    assert "64 rows per optimizer step, 16 on each of 4 devices" in shown


def test_each_card_with_too_little_room_is_named() -> None:
    found = resolve(llama("qlora")).estimate()
    full = replace(card(23), index=1)
    assert "1.0 GiB are free now on GPU 1. That is" in estimate_panel(found, [card(0), full])
