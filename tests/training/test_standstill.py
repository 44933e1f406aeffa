"""Test the limits of a standstill, and what counts as work of a thread."""

import subprocess
import sys
import threading
import time
import traceback

import pytest

from core.training.ranks.marks import FEWEST_GAPS, LEAST_SECONDS, SECONDS_UNMEASURED, Marks
from core.training.ranks.standstill import LONGEST_LOOK, MOST_SECONDS, Standstill, place_of, waits


class Clock:
    """Clock that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def leave_marks(self, marks: Marks, count: int, seconds: float) -> None:
        """Leave marks at equal distances."""
        for _mark in range(count):
            self.now += seconds
            marks.add()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock.monotonic)
    return clock


@pytest.fixture
def marks(clock: Clock) -> Marks:
    """Return the marks of a training whose parts have taken 5 s each."""
    marks = Marks()
    marks.begin("train")
    clock.leave_marks(marks, 2 * FEWEST_GAPS, 5)
    return marks


def test_a_phase_that_was_measured_may_take_ten_times_its_longest_part(marks: Marks) -> None:
    assert marks.limit == 50


def test_the_first_parts_do_not_count(clock: Clock) -> None:
    marks = Marks()
    marks.begin("train")
    clock.leave_marks(marks, FEWEST_GAPS, 600)  # divides the model, compiles
    clock.leave_marks(marks, FEWEST_GAPS, 4)
    assert marks.limit == 40


def test_a_longer_part_raises_the_limit(clock: Clock, marks: Marks) -> None:
    clock.leave_marks(marks, 1, 45)
    assert marks.limit == 450


def test_short_parts_have_a_least_limit(clock: Clock) -> None:
    marks = Marks()
    marks.begin("train")
    clock.leave_marks(marks, 2 * FEWEST_GAPS, 0.01)
    assert marks.limit == LEAST_SECONDS


def test_a_phase_with_few_parts_is_not_measured(clock: Clock) -> None:
    marks = Marks()
    marks.begin("train")
    clock.leave_marks(marks, 2 * FEWEST_GAPS - 1, 1)
    assert marks.limit == SECONDS_UNMEASURED


def test_each_phase_has_its_own_limit(clock: Clock, marks: Marks) -> None:
    marks.begin("eval")
    assert marks.limit == SECONDS_UNMEASURED
    clock.leave_marks(marks, 2 * FEWEST_GAPS, 20)
    assert marks.limit == 200
    marks.begin("train")
    assert marks.limit == 50


@pytest.mark.parametrize("phase", ["import", "data", "load", "save"])
def test_loading_and_saving_are_never_measured(clock: Clock, phase: str) -> None:
    marks = Marks()
    marks.begin(phase)
    clock.leave_marks(marks, 10 * FEWEST_GAPS, 1)
    assert marks.limit == SECONDS_UNMEASURED


class Watched:
    """Standstill of a thread of which the test says whether it works."""

    def __init__(self, clock: Clock, marks: Marks, monkeypatch: pytest.MonkeyPatch):
        self.clock = clock
        self.works = False
        self.standstill = Standstill(marks)
        monkeypatch.setattr(Standstill, "_works", lambda _self, _elapsed: self.works)
        self.standstill.look()

    def look(self, seconds: float) -> bool:
        """Look each second for some time. Return True if the thread stands still."""
        for _second in range(round(seconds)):
            self.clock.now += 1
            self.standstill.look()
        return self.standstill.words is not None


@pytest.fixture
def watched(clock: Clock, marks: Marks, monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(clock, marks, monkeypatch)


def test_a_thread_without_a_mark_stands_still(watched: Watched) -> None:
    assert not watched.look(49)
    assert watched.look(1)


def test_a_mark_ends_the_standstill(watched: Watched, marks: Marks) -> None:
    watched.look(49)
    marks.add()
    assert not watched.look(10)


def test_it_can_end_after_it_was_told(watched: Watched, marks: Marks) -> None:
    assert watched.look(60)
    marks.add()
    assert not watched.look(1)


def test_a_thread_at_work_does_not_stand_still(watched: Watched) -> None:
    watched.works = True
    assert not watched.look(1000)
    watched.works = False
    assert not watched.look(49)
    assert watched.look(1)


def test_work_without_a_mark_does_not_count_for_ever(watched: Watched) -> None:
    watched.works = True
    assert not watched.look(MOST_SECONDS - 1)
    assert watched.look(1)


def test_a_watcher_that_did_not_run_saw_no_standstill(watched: Watched) -> None:
    watched.clock.now += 10_000
    watched.standstill.look()
    assert not watched.look(50 - LONGEST_LOOK - 1)


def test_a_suspension_between_two_marks_raises_no_limit(watched: Watched, marks: Marks) -> None:
    watched.clock.now += 600  # the main thread is the first to run again
    marks.add()
    assert marks.limit == 50


def test_a_suspension_that_was_looked_at_raises_no_limit(watched: Watched, marks: Marks) -> None:
    watched.clock.now += 600
    watched.standstill.look()
    marks.add()
    assert marks.limit == 50


def test_a_slow_part_still_raises_the_limit(watched: Watched, marks: Marks) -> None:
    watched.look(45)
    marks.add()
    assert marks.limit == 450


def test_the_words_say_part_and_place(watched: Watched) -> None:
    watched.look(60)
    words = watched.standstill.words
    assert words is not None
    assert (words["parts"], words["activity"], words["waits"]) == (1, "train", False)
    assert words["place"].startswith("line ")


CHILD = """
import sys, threading, time
from core.training.ranks.marks import Marks
from core.training.ranks.standstill import Standstill
standstill = Standstill(Marks())

def look():
    standstill._works(1.0)
    for _look in range(3):
        time.sleep(1)
        print(standstill._works(1.0), flush=True)

thread = threading.Thread(target=look)
thread.start()
"""
WORK = {
    "python": ("while thread.is_alive(): pass", "True"),
    "a library that keeps the processor": (
        "import zlib\ndata = bytes(300_000_000)\nwhile thread.is_alive(): zlib.crc32(data)",
        "True",
    ),
    "a child": (
        "import subprocess\n"
        "child = subprocess.Popen([sys.executable, '-c', 'while True: pass'])\n"
        "thread.join()\nchild.kill()",
        "True",
    ),
    "a lock": ("thread.join()", "False"),
    "sleep": ("time.sleep(6)", "False"),
    "a child that sleeps": (
        "import subprocess\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "thread.join()\nchild.kill()",
        "False",
    ),
}
"""What a main thread does -> (its program, whether that is work)."""


@pytest.mark.training
@pytest.mark.parametrize("what", WORK)
def test_what_is_work(what: str) -> None:
    program, is_work = WORK[what]
    done = subprocess.run(
        [sys.executable, "-c", CHILD + program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[-1] == is_work


def stack_of(*names: str) -> traceback.StackSummary:
    frames = [traceback.FrameSummary(name, number, "run") for number, name in enumerate(names)]
    return traceback.StackSummary.from_list(frames)


OWN = "/run/training/loop/trainer.py"


@pytest.mark.parametrize(
    "names",
    [
        (OWN, "/lib/torch/distributed/distributed_c10d.py"),
        (OWN, "/lib/torch/distributed/_functional_collectives.py", "/lib/torch/_ops.py"),
        (OWN, "/run/training/ranks/agreement.py"),
        (OWN, "/lib/torch/autograd/graph.py"),
        (OWN, "/lib/torch/nn/parallel/distributed.py"),
    ],
)
def test_a_rank_in_a_collective_waits(names: tuple[str, ...]) -> None:
    assert waits(stack_of(*names))


@pytest.mark.parametrize(
    "names",
    [
        (OWN,),
        ("/lib/torch/nn/parallel/distributed.py", "/lib/torch/nn/modules/module.py", OWN),
        ("/lib/torch/autograd/graph.py", OWN),
    ],
)
def test_a_rank_in_its_own_work_does_not_wait(names: tuple[str, ...]) -> None:
    assert not waits(stack_of(*names))


def test_the_place_is_not_of_pythons_own_library() -> None:
    assert place_of(stack_of(OWN, threading.__file__)) == "line 0 of trainer.py"
