"""Test that no handler fails for what a browser may send."""

import asyncio
import json
import random
from collections.abc import Iterator

import gradio as gr
import orjson
import pytest
from gradio.state_holder import SessionState

from core.runs import Home
from tests.builders.fake_runs import bare_run
from ui import page
from ui.events import INTERNAL_ERROR
from ui.handlers import Handlers
from ui.handlers.kept_form import FORMAT
from ui.inputs import checked, showable

ODD_VALUES = (
    None,
    [],
    ["a"],
    {"a": 1},
    "",
    "\ud800",
    "\x00",
    -1,
    float("nan"),
    10**400,
    True,
    "demo",
)
NUM_ROUNDS = 12


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[gr.Blocks]:
    """Return the page over a home with one finished run."""
    home = Home.find(str(tmp_path_factory.mktemp("home")))
    bare_run(home, "finished")
    handlers = Handlers(home)
    yield page.build(handlers)
    handlers.close()


@pytest.mark.usefixtures("fake_program")
def test_no_event_fails_for_odd_values(blocks: gr.Blocks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ui.handlers.exports.install", lambda _home: None)  # downloads 88 MB
    dice = random.Random(0)
    for event in blocks.fns.values():
        if event.fn is None:
            continue
        for _round in range(NUM_ROUNDS):
            named = zip(event.input_keyword_names, event.inputs, strict=True)
            shown = event.fn(**{name: odd_value(part, dice) for name, part in named})
            assert INTERNAL_ERROR not in str(shown)


@pytest.mark.usefixtures("fake_program")
@pytest.mark.parametrize("name", ["on_edit", "on_stop", "on_export_settings", "on_row_format"])
def test_gradio_itself_fails_for_no_odd_value(blocks: gr.Blocks, name: str) -> None:
    event = next(each for each in blocks.fns.values() if each.api_name == name)
    state = SessionState(blocks)
    for value in (None, ["a"], {"a": 1}, "teleport", float("inf")):
        sent = [part.value if isinstance(part, gr.State) else value for part in event.inputs]
        answer = asyncio.run(blocks.process_api(event, sent, state=state))
        assert INTERNAL_ERROR not in str(answer["data"])


@pytest.mark.parametrize(("sent", "whole"), [(2.6, 3), (7, 7)])
def test_a_control_of_whole_numbers_sends_whole_ones(sent: float, whole: int) -> None:
    assert checked({"seed": sent}, {"seed": gr.Number(precision=0)}) == {"seed": whole}


def odd_value(part: object, dice: random.Random) -> object:
    """Return what a browser could send for a component, or the server's own state."""
    return part.value if isinstance(part, gr.State) else dice.choice(ODD_VALUES)


@pytest.mark.parametrize("value", [None, ["a"], {"a": 1}])
def test_a_text_of_the_page_is_never_none(value: object) -> None:
    assert checked({"query": value}, {"query": gr.Textbox()}) == {"query": ""}


def test_a_surrogate_is_replaced() -> None:
    assert checked({"query": "a\ud800"}, {"query": gr.Textbox()}) == {"query": "a\ufffd"}


def test_a_surrogate_in_a_file_is_not_sent_to_the_browser() -> None:
    assert showable(gr.HTML(), "<p>a\ud800</p>") == "<p>a\ufffd</p>"


def test_a_text_is_no_number() -> None:
    assert checked({"lora_r": "ten"}, {"lora_r": gr.Number()}) == {"lora_r": None}


def test_a_number_of_more_than_64_bits_can_be_sent_back() -> None:
    (number,) = checked({"seed": 10**21}, {"seed": gr.Number()}).values()
    assert orjson.dumps(number) == b"1e+21"


@pytest.mark.parametrize("value", [1e21, -1e300, float("inf"), float("nan"), 10**400])
@pytest.mark.parametrize("is_update", [False, True])
def test_a_whole_number_of_any_size_can_be_shown(value: float, is_update: bool) -> None:
    box = gr.Number(precision=0)
    shown = showable(box, gr.update(value=value) if is_update else value)
    orjson.dumps(box.postprocess(shown["value"] if isinstance(shown, dict) else shown))


def test_a_kept_form_with_a_huge_number_is_restored(blocks: gr.Blocks) -> None:
    (restore,) = (each for each in blocks.fns.values() if each.api_name == "on_restore")
    kept = {"format": FORMAT, "values": {"lora_r": 1e21, "max_length": 1e21}}
    shown = restore.fn(kept_form=json.dumps(kept))
    numbers = {part: update for part, update in shown.items() if isinstance(part, gr.Number)}
    assert len(numbers) == 2
    orjson.dumps([part.postprocess(update) for part, update in numbers.items()])
