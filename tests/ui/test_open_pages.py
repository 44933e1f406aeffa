"""Test what the server keeps of a page: no more after many edits, little once it is closed."""

import asyncio
import time
from collections.abc import Callable

import gradio as gr
import psutil
import pytest

from tests.builders.browser import App
from tests.builders.edited_page import EditedPage
from ui.open_pages import MAX_CLOSED, OpenPages

NUM_EDITS, NUM_TABS = 2000, 200
MAX_GROWTH_MIB = 30
EDITS_BEFORE = 50
"""By then the caches of the forecasts are full."""
SECONDS_TO_FORGET = 3


@pytest.fixture
def blocks() -> gr.Blocks:
    with gr.Blocks(analytics_enabled=False) as made:
        box = gr.Textbox("text")
        counted = gr.State(0)
        made.load(lambda text, number: None, [box, counted], [box, counted])
    return made


@pytest.fixture
def pages(blocks: gr.Blocks) -> OpenPages:
    made = OpenPages()
    made.set_blocks(blocks)
    return made


def update(pages: OpenPages, tab: str, number: int) -> object:
    """Update both components as a handler does, and return what the next one is called with."""
    session = pages[tab]
    (event,) = pages.blocks.fns.values()
    updates = [gr.update(value=f"text {number}", info="help"), number]
    asyncio.run(pages.blocks.postprocess_data(event, updates, session))
    return asyncio.run(pages.blocks.preprocess_data(event, ["sent", None], session))


def test_updates_add_no_components(pages: OpenPages) -> None:
    update(pages, "tab", 0)
    num_before = len(pages["tab"].blocks_config.blocks)
    for number in range(20):
        update(pages, "tab", number)
    assert len(pages["tab"].blocks_config.blocks) == num_before


def test_each_page_has_its_own_state(pages: OpenPages) -> None:
    update(pages, "one", 1)
    update(pages, "other", 2)
    assert update(pages, "one", 3) == ["sent", 3]


def test_closed_pages_are_forgotten_but_for_some(pages: OpenPages) -> None:
    for number in range(MAX_CLOSED + 5):
        pages[f"tab {number}"].is_closed = True
    assert pages["open"].is_closed is False
    pages.delete_all_expired_state()
    assert len(pages.session_data) == MAX_CLOSED + 1


def test_page_that_came_back_is_kept(pages: OpenPages) -> None:
    for number in range(MAX_CLOSED + 1):
        pages[f"tab {number}"].is_closed = True
    update(pages, "tab 0", 7)
    pages.delete_all_expired_state()
    assert "tab 0" in pages


@pytest.mark.slow
def test_server_does_not_grow_with_edits_and_tabs(start_app: Callable[[], App]) -> None:
    app = start_app()
    page, process = EditedPage(app), psutil.Process(app.process.pid)
    for number in range(EDITS_BEFORE):
        page.edit("tab", learning_rate=1e-4 * (1 + number % 7), lora_r=8 + number % 5)
    num_bytes = process.memory_full_info().uss
    for number in range(NUM_EDITS):
        page.edit("tab", learning_rate=1e-4 * (1 + number % 7), lora_r=8 + number % 5)
    for number in range(NUM_TABS):
        page.load(f"tab {number}")
    time.sleep(SECONDS_TO_FORGET)
    grown = process.memory_full_info().uss - num_bytes
    assert grown / 2**20 < MAX_GROWTH_MIB
