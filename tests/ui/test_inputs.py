"""Test that no handler fails for what a browser may send."""

import random
from collections.abc import Iterator

import gradio as gr
import orjson
import pytest

from core.runs import Home
from tests.builders.fake_runs import bare_run
from ui import page
from ui.events import INTERNAL_ERROR
from ui.handlers import Handlers
from ui.inputs import checked

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
def test_no_event_fails_for_odd_values(blocks: gr.Blocks) -> None:
    dice = random.Random(0)
    for event in blocks.fns.values():
        if event.fn is None:
            continue
        for _round in range(NUM_ROUNDS):
            named = zip(event.input_keyword_names, event.inputs, strict=True)
            shown = event.fn(**{name: odd_value(part, dice) for name, part in named})
            assert INTERNAL_ERROR not in str(shown)


def odd_value(part: object, dice: random.Random) -> object:
    """Return what a browser could send for a component, or the server's own state."""
    return part.value if isinstance(part, gr.State) else dice.choice(ODD_VALUES)


@pytest.mark.parametrize("value", [None, ["a"], {"a": 1}])
def test_a_text_of_the_page_is_never_none(value: object) -> None:
    assert checked({"query": value}, {"query": gr.Textbox()}) == {"query": ""}


def test_a_surrogate_is_replaced() -> None:
    assert checked({"query": "a\ud800"}, {"query": gr.Textbox()}) == {"query": "a\ufffd"}


def test_a_text_is_no_number() -> None:
    assert checked({"lora_r": "ten"}, {"lora_r": gr.Number()}) == {"lora_r": None}


def test_a_number_of_more_than_64_bits_can_be_sent_back() -> None:
    (number,) = checked({"seed": 10**21}, {"seed": gr.Number()}).values()
    assert orjson.dumps(number) == b"1e+21"
