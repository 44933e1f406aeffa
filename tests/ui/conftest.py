"""Handlers of the page over an empty home, with a training program that takes no time."""

from collections.abc import Iterator

import pytest

from core.runs import Home
from tests.builders.page import FormPage
from ui.handlers import Handlers


@pytest.fixture
def handlers(home: Home, fake_program: None) -> Iterator[Handlers]:
    made = Handlers(home)
    yield made
    made.close()


@pytest.fixture
def page_form(handlers: Handlers) -> FormPage:
    """Return an open page with the demo in its form."""
    return FormPage(handlers)
