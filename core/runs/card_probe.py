"""Test of a card on which a run has failed: a new process computes on it. Starts no run."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from core.device.child import Child, Limits
from core.job import ChildError
from core.runs.launch import environment
from core.runs.run import Run
from core.training.contract.failures import GPU_FAILED

SECONDS_TO_PROBE = 120.0
"""The libraries take some seconds to be imported, and a card may take long to wake."""
SECONDS_BETWEEN_PROBES = 60.0


@dataclass
class Probe:
    """Test of one card after one failure, which a thread makes."""

    ended: float | None = None
    """Monotonic clock; None while it is under way."""
    has_answered: bool = False
    thread: threading.Thread = field(init=False)

    @property
    def is_due(self) -> bool:
        """True if the card has not answered and some time has passed since."""
        if self.has_answered or self.ended is None:
            return False
        return time.monotonic() - self.ended > SECONDS_BETWEEN_PROBES


_probes: dict[tuple[Path, float], Probe] = {}
"""(folder of a failed run, time of the failure) -> its newest test in this process."""


def has_failed(run: Run) -> bool:
    """Return True if the last attempt of a run ended because its card failed."""
    return run.status.state == "failed" and run.status.cause == GPU_FAILED


def probe_card(device: str) -> bool:
    """Return whether a new process can compute on a card. Takes seconds."""
    try:
        with Child("core.workers.probe", Limits(), environment=environment(device)) as child:
            child.ask({}, SECONDS_TO_PROBE)
    except ChildError:
        return False
    return True


def answers_again(run: Run, device: str) -> bool:
    """Return whether the card of a failed run has answered since; if not, have it tested again.

    Does not wait for the test.
    """
    key = (run.folder, run.status.updated)
    probe = _probes.get(key)
    if probe is None or probe.is_due:
        probe = _probes[key] = _begin(lambda: probe_card(device))
    return probe.has_answered


def _begin(test: Callable[[], bool]) -> Probe:
    probe = Probe()

    def run_test() -> None:
        probe.has_answered = test()
        probe.ended = time.monotonic()

    probe.thread = threading.Thread(target=run_test, name="probe the card", daemon=True)
    probe.thread.start()
    return probe
