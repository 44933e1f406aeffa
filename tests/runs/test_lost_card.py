"""Test that a card which has failed gets no other run before a new process has used it."""

import threading
from collections.abc import Iterator

import pytest

from core.device.child import Child, Limits
from core.job import ChildError, SpecError
from core.runs import Home, Run, card_probe, launch, queue
from core.runs.results import failure_advice
from tests.builders.fake_runs import LOST_CARD, NewRun, advanced, ended


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Return a card that answers once it is set."""
    answers = threading.Event()
    monkeypatch.setattr(card_probe, "probe_card", lambda device: answers.is_set())
    monkeypatch.setattr(card_probe, "SECONDS_BETWEEN_PROBES", 0.1)
    yield answers
    answers.set()


@pytest.fixture
def lost(home: Home, new_run: NewRun, card: threading.Event) -> Run:
    """Return a run whose card was lost."""
    return ended(home, queue.submit(home, new_run(seed=LOST_CARD)))


def test_a_lost_card_gets_no_run_until_it_answers(
    home: Home, new_run: NewRun, card: threading.Event, lost: Run
) -> None:
    waiting = queue.submit(home, new_run())
    for _advance in range(5):
        queue.advance(home)
    assert waiting.state == "queued"
    assert f"a test of the card, which failed under {lost.id}" in queue.why_it_waits(waiting)
    card.set()
    assert advanced(home, waiting, lambda run: run.step > 0)


def test_the_run_that_lost_its_card_waits_too(home: Home, card: threading.Event, lost: Run) -> None:
    assert queue.submit(home, lost).state == "queued"
    queue.advance(home)
    assert queue.waiting(home)
    card.set()
    assert advanced(home, lost, lambda run: run.state != "queued").process


def test_a_task_gets_no_lost_card(home: Home, lost: Run) -> None:
    with pytest.raises(SpecError, match="a test of the card"):
        queue.reserve(home, 0, "chat", "a chat")


def test_a_lost_card_comes_with_help(lost: Run) -> None:
    assert lost.cause == "gpu_failed"
    assert failure_advice.advice_for(lost)[0].title.startswith("Resume once")


def test_a_card_that_is_not_there_does_not_answer() -> None:
    environment = launch.environment("0") | {"CUDA_VISIBLE_DEVICES": ""}
    with (
        Child("core.workers.probe", Limits(), environment=environment) as child,
        pytest.raises(ChildError, match="no card is there"),
    ):
        child.ask({}, 120)
