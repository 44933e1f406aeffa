"""Test the form: controls, defaults that follow other fields, marks, profiles and job files."""

from typing import get_args

import gradio as gr
import pytest

from core.job import JobSpec
from core.resolve import default_fields
from core.training.contract.methods import METHODS
from core.training.contract.stages import STAGES
from tests.builders.page import LLAMA, FormPage, demo, llama
from ui import form
from ui.handlers import Handlers

PLACED_ALONE = {"model", "data", "method", "objective", "stage", "gpu", "profile", "main"}
"""Groups that the page places itself; the others are under Advanced."""


def test_every_field_of_a_job_has_one_control() -> None:
    fields = [control.field for control in form.CONTROLS]
    assert sorted(fields) == sorted(JobSpec.model_fields)


def test_every_control_is_in_a_group_that_the_page_shows() -> None:
    assert {control.group for control in form.CONTROLS} == PLACED_ALONE | form.ADVANCED.keys()


def test_every_label_is_there_once() -> None:
    labels = [control.label for control in form.CONTROLS]
    assert len(set(labels)) == len(labels)


def test_choices_of_the_form_are_those_of_the_job() -> None:
    with gr.Blocks():
        fields = form.render("optimizer")
    options = [value for _, value in fields["optim"].choices]
    assert options == list(get_args(JobSpec.model_fields["optim"].annotation))


def test_the_form_opens_with_the_settings_of_the_demo() -> None:
    with gr.Blocks():
        fields = {control.field: form.build(control) for control in form.CONTROLS}
    assert {name: field.value for name, field in fields.items()} == default_fields("demo", "lora")


def test_the_first_edit_changes_no_value(page_form: FormPage) -> None:
    page_form.edit()
    assert page_form.form == demo()


def test_the_page_opens_with_a_job_that_fits(page_form: FormPage) -> None:
    assert "Fits" in page_form.edit()["estimate"]


def test_another_model_brings_its_defaults(page_form: FormPage) -> None:
    page_form.edit(model="Qwen/Qwen2.5-7B")
    assert page_form.form["max_length"] == 2048
    assert page_form.form["learning_rate"] == 2e-4


def test_another_model_leaves_the_data_alone(page_form: FormPage) -> None:
    assert "dataset" not in page_form.edit(model="Qwen/Qwen2.5-7B")


@pytest.mark.parametrize("method", METHODS)
def test_a_method_brings_its_defaults_but_not_over_set_values(
    handlers: Handlers, method: str
) -> None:
    plain = {**default_fields("org/some-model", "lora"), "model": "org/some-model", "lora_r": 99}
    page = FormPage(handlers, plain)
    page.edit(method=method)
    expected = {**plain, "method": method, **METHODS[method].defaults}
    assert page.form == expected


@pytest.mark.parametrize(
    ("method", "field", "is_used"),
    [
        ("full", "lora_r", False),
        ("full", "bnb_4bit_quant_type", False),
        ("lora", "bnb_4bit_quant_type", False),
        ("qlora", "lora_r", True),
        ("qlora", "bnb_4bit_quant_type", True),
    ],
)
def test_fields_that_the_method_does_not_read_are_locked(
    page_form: FormPage, method: str, field: str, is_used: bool
) -> None:
    page_form.edit(method="freeze")  # locks both
    page_form.edit(method=method)
    assert page_form.states["form_state"].marks[field].is_used is is_used


def test_a_locked_field_cannot_be_edited(page_form: FormPage) -> None:
    assert page_form.edit(method="full")["lora_r"]["interactive"] is False


def test_a_field_that_the_stage_does_not_read_is_hidden(page_form: FormPage) -> None:
    page_form.edit(stage="dpo")
    shown = page_form.edit(stage="sft")
    assert shown["beta"]["visible"] is False
    assert shown["stage_settings"]["visible"] is False


def test_the_settings_of_a_stage_are_shown_with_it(page_form: FormPage) -> None:
    page_form.edit()
    shown = page_form.edit(stage="dpo")
    assert shown["stage_settings"]["visible"] is True


def test_the_stage_and_the_method_say_what_they_do(page_form: FormPage) -> None:
    shown = page_form.edit(stage="dpo", method="qlora")
    assert shown["stage"]["info"] == STAGES["dpo"].help
    assert shown["method"]["info"] == METHODS["qlora"].help


def test_a_problem_is_shown_at_its_field(page_form: FormPage) -> None:
    shown = page_form.edit(lora_r=-1)
    assert "give 1 or more" in shown["lora_r"]["info"]
    assert shown["lora_r"]["elem_classes"] == ["wrong", "changed"]


def test_a_problem_that_is_solved_disappears(page_form: FormPage) -> None:
    page_form.edit(lora_r=-1)
    shown = page_form.edit(lora_r=16)
    assert shown["lora_r"]["info"] == JobSpec.model_fields["lora_r"].description


@pytest.mark.parametrize("value", [float("nan"), None, "abc", -1, 1e9, [1], {"a": 1}])
def test_a_bad_learning_rate_is_refused_at_its_field(page_form: FormPage, value: object) -> None:
    assert "<b>Learning rate</b>" in page_form.edit(learning_rate=value)["estimate"]


@pytest.mark.parametrize("value", [float("nan"), None, "abc", -1, 1e9])
def test_a_bad_learning_rate_does_not_start(page_form: FormPage, value: object) -> None:
    page_form.form["learning_rate"] = value
    assert "Not started" in page_form.start()["start_message"]


@pytest.mark.parametrize("field", ["model", "method", "stage", "gpu", "profile", "dataset"])
@pytest.mark.parametrize("value", [None, "", "nonsense", ["demo"], 7])
def test_a_forged_choice_is_refused_without_an_internal_error(
    page_form: FormPage, field: str, value: object
) -> None:
    assert "cannot run yet" in page_form.edit(**{field: value})["estimate"]


def test_the_effective_batch_size_is_shown(page_form: FormPage) -> None:
    shown = page_form.edit(per_device_train_batch_size=3, gradient_accumulation_steps=5)
    assert "15 rows" in shown["effective_batch"]


def test_a_changed_setting_is_in_the_reset_menu(page_form: FormPage) -> None:
    shown = page_form.edit(lora_r=32)
    assert dict(shown["reset_field"]["choices"]) == {"LoRA rank: 32, default 16": "lora_r"}


def test_the_reset_menu_is_hidden_while_nothing_is_changed(page_form: FormPage) -> None:
    assert page_form.edit()["reset_field"]["visible"] is False


def reset(page: FormPage, field: str) -> None:
    """Choose a field in the reset menu, and answer the edit that follows."""
    identity = ("form_state", "model", "method", "stage")
    page.fire(page.handlers.estimate.on_reset_field, *identity, reset_field=field)
    page.edit()


def test_one_setting_is_reset(page_form: FormPage) -> None:
    page_form.edit(lora_r=32, learning_rate=0.5)
    reset(page_form, "lora_r")
    assert page_form.form == demo(learning_rate=0.5)


def test_a_reset_of_an_unknown_field_is_ignored(page_form: FormPage) -> None:
    page_form.edit()
    reset(page_form, "__class__")
    assert page_form.form == demo()


def test_all_settings_are_reset(page_form: FormPage) -> None:
    page_form.edit(lora_r=32, learning_rate=0.5, stage="dpo")
    identity = ("form_state", "model", "method", "stage")
    page_form.fire(page_form.handlers.estimate.on_reset_all, *identity)
    page_form.edit()
    expected = {**default_fields("demo", "lora", "dpo"), "stage": "dpo"}
    assert page_form.form == expected


# Profiles


def test_a_profile_chooses_its_fields(handlers: Handlers) -> None:
    page = FormPage(handlers, llama("qlora", profile="fastest"))
    shown = page.edit()
    assert "<code>per_device_train_batch_size</code>" in shown["plan"]
    planned = page.states["form_state"].planned
    assert {name: page.form[name] for name in planned} == planned


def test_a_field_set_by_the_user_stays_as_the_profile_chooses_again(handlers: Handlers) -> None:
    page = FormPage(handlers, llama("qlora", profile="fastest"))
    page.edit()
    page.suggest()
    page.edit(per_device_train_batch_size=3)
    for gpu in ("a100-80gb", "h200"):
        shown = page.edit(gpu=gpu)
        assert page.form["per_device_train_batch_size"] == 3
        assert "Kept as you set them: per_device_train_batch_size" in shown["plan"]


def test_another_profile_chooses_every_field(handlers: Handlers) -> None:
    page = FormPage(handlers, llama("qlora", profile="fastest"))
    page.edit()
    page.suggest()
    page.edit(per_device_train_batch_size=3)
    shown = page.edit(profile="smallest")
    assert "Kept as you set them" not in shown["plan"]
    assert page.form["per_device_train_batch_size"] == 1


@pytest.mark.parametrize("has_received_the_plan", [False, True])
def test_a_value_that_the_browser_had_not_updated_is_no_edit(
    handlers: Handlers, has_received_the_plan: bool
) -> None:
    early = llama("qlora", profile="fastest")
    page = FormPage(handlers, early)
    page.edit()
    if has_received_the_plan:
        page.suggest()
    # A quick edit: the browser still holds what the profile has replaced.
    old = {name: early[name] for name in page.states["form_state"].planned}
    shown = page.edit(**old, learning_rate=1e-4)
    assert ("Kept as you set them" in shown["plan"]) is has_received_the_plan


def test_a_reset_field_is_the_choice_of_the_profile_again(page_form: FormPage) -> None:
    page_form.edit(profile="smallest")
    page_form.suggest()
    planned = dict(page_form.form)
    page_form.edit(gradient_checkpointing=not planned["gradient_checkpointing"])
    reset(page_form, "gradient_checkpointing")
    assert page_form.form == planned


def test_the_reset_menu_says_when_the_profile_would_choose(page_form: FormPage) -> None:
    page_form.edit(profile="smallest")
    page_form.suggest()
    shown = page_form.edit(gradient_checkpointing=False)
    labels = {field: label for label, field in shown["reset_field"]["choices"]}
    expected = "Gradient checkpointing: False, or let the profile choose"
    assert labels["gradient_checkpointing"] == expected


# Job file and command line


def test_the_job_file_is_shown(page_form: FormPage) -> None:
    assert JobSpec.from_json(page_form.edit(lora_r=5)["job_file"]).lora_r == 5


def load(page: FormPage, text: str) -> str:
    """Load a job file, answer the edit that follows and return the message."""
    on_job_file = page.handlers.estimate.on_job_file
    shown = page.fire(on_job_file, "form_state", job_file=text)
    page.edit()
    return str(shown["job_file_message"])


def test_a_job_file_fills_the_form(handlers: Handlers, page_form: FormPage) -> None:
    text = page_form.edit(lora_r=5)["job_file"]
    other = FormPage(handlers)
    load(other, text)
    assert other.form == page_form.form


def test_values_of_a_job_file_do_not_follow_defaults(handlers: Handlers) -> None:
    # Both values are defaults of the demo, which the form holds before, and not of this model.
    job = JobSpec.parse({"model": LLAMA, "max_length": 256, "profile": "custom"})
    page = FormPage(handlers)
    page.edit()
    load(page, job.to_json())
    assert (page.form["max_length"], page.form["profile"]) == (256, "custom")


@pytest.mark.parametrize(
    ("text", "message"), [('{"lora_r": -1}', "Give 1 or more"), ("{", "not JSON")]
)
def test_a_bad_job_file_changes_nothing(page_form: FormPage, text: str, message: str) -> None:
    page_form.edit()
    assert message in load(page_form, text)
    assert page_form.form == demo()


def test_the_command_has_the_fields_that_differ_from_its_defaults(page_form: FormPage) -> None:
    assert page_form.edit()["command"] == "python app.py train --demo"
    assert page_form.edit(lora_r=5)["command"] == "python app.py train --demo --lora-r 5"


def test_what_was_said_of_a_start_outlives_the_measuring_of_its_rows(page_form: FormPage) -> None:
    page_form.edit(learning_rate=0.5)
    assert "start_message" not in page_form.edit()
    assert "start_message" in page_form.edit(learning_rate=0.6)
