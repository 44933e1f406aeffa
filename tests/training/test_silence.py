"""Test what counts as the silence of a process."""

import time

import pytest

from core.training.ranks import silence as room
from core.training.ranks.silence import SECONDS_WITHOUT_BEAT, Silence


class Clock:
    """Clock that the test moves, and a process whose work the test sets."""

    def __init__(self) -> None:
        self.now = 0.0
        self.work = (0.0, 0.0)

    def look(self, silence: Silence, seconds: float) -> None:
        """Look twice a second for some time."""
        for _look in range(round(2 * seconds)):
            self.now += 0.5
            silence.grow()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(room, "work_of", lambda pid: clock.work)
    return clock


@pytest.fixture
def silence(clock: Clock) -> Silence:
    silence = Silence(pid=1)
    silence.end()
    return silence


def test_a_process_without_a_beat_hangs(clock: Clock, silence: Silence) -> None:
    clock.look(silence, SECONDS_WITHOUT_BEAT)
    assert silence.is_too_long


def test_a_beat_ends_the_silence(clock: Clock, silence: Silence) -> None:
    clock.look(silence, SECONDS_WITHOUT_BEAT - 1)
    silence.end()
    clock.look(silence, SECONDS_WITHOUT_BEAT - 1)
    assert not silence.is_too_long


def test_a_watcher_that_did_not_run_heard_no_silence(clock: Clock, silence: Silence) -> None:
    clock.now += 1000
    silence.grow()
    assert not silence.is_too_long


@pytest.mark.parametrize("work", [(1.0, 0.0), (0.0, 4096.0)])
def test_a_library_that_works_alone_is_no_silence(
    clock: Clock, silence: Silence, work: tuple[float, float]
) -> None:
    for _part in range(6):
        clock.work = (clock.work[0] + work[0], clock.work[1] + work[1])
        clock.look(silence, SECONDS_WITHOUT_BEAT / 2)
    assert not silence.is_too_long


def test_work_without_a_beat_does_not_count_for_ever(clock: Clock, silence: Silence) -> None:
    while clock.now < 2 * room.SECONDS_OF_WORK and not silence.is_too_long:
        clock.work = (clock.now, 0.0)
        clock.look(silence, 1)
    assert silence.is_too_long
