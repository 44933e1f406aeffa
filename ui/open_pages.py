"""Sessions of open pages, which Gradio keeps on the server: they do not grow and are forgotten.

Gradio gives a component a new id at every update and keeps the old one, some 0.4 MB for each edit;
and it keeps what it knows of a page after the page is closed.
"""

import datetime
from typing import Final

import gradio as gr
from gradio.blocks import Block, Blocks
from gradio.state_holder import SessionState, StateHolder

SECONDS_AFTER_CLOSE: Final = 600
"""A page whose connection was lost may come back."""
MAX_CLOSED: Final = 8
"""Pages that are kept after they were closed."""


class PageSession(SessionState):
    """Knowledge of the server about one open page: values of its states, and changed components."""

    def __init__(self, blocks: Blocks):
        super().__init__(blocks)
        self.config_values = {}  # serves links to a state of the page, which there are none of

    def __setitem__(self, key: int, value: object) -> None:
        """Keep a state's value, or a component that an update has changed, under its old id."""
        if isinstance(self.blocks_config.blocks.get(key), gr.State):
            super().__setitem__(key, value)
        else:
            assert isinstance(value, Block)
            value._id = key
            self.blocks_config.blocks[key] = value

    def _update_config(self, key: int) -> None:
        pass

    def _update_value_in_config(self, key: int, value: object) -> None:
        pass


class OpenPages(StateHolder):
    """Sessions of all open pages, and of some that were closed."""

    def __getitem__(self, session_id: str) -> SessionState:
        if session_id not in self.session_data:
            self.session_data[session_id] = PageSession(self.blocks)
        session = super().__getitem__(session_id)
        session.is_closed = False
        return session

    def delete_all_expired_state(self) -> None:
        """Forget pages that were closed. Gradio calls this every second."""
        closed = [name for name, session in self.session_data.items() if session.is_closed]
        now = datetime.datetime.now()
        for place, name in enumerate(closed):  # the least recently used first
            silence = now - self.time_last_used.get(name, now)
            is_one_too_many = place < len(closed) - MAX_CLOSED
            if is_one_too_many or silence.total_seconds() > SECONDS_AFTER_CLOSE:
                self.session_data.pop(name, None)
                self.time_last_used.pop(name, None)


def forget_closed_pages(blocks: Blocks) -> None:
    """Let the server of a page keep its sessions so. Call it once the page is launched."""
    pages = OpenPages()
    pages.set_blocks(blocks)
    blocks.app.state_holder = pages
