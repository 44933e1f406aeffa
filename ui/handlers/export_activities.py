"""Threads that check the exports of runs: the page asks how far they are, and never waits."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from core.job import ChildError, TailorError
from core.runs import Run
from core.runs.results import checking
from ui import render


@dataclass
class ExportActivity:
    """Check of exports that this page's server has started."""

    text: str
    """What is done now."""
    share: float = 0.0
    error: str = ""
    is_running: bool = True
    is_stopped: bool = False

    def run(self, work: Callable[["ExportActivity"], object]) -> None:
        """Do the work and note how it went."""
        try:
            work(self)
        except ChildError as error:
            self.error = "" if error.cause == "cancelled" else checking.died_sentence(error)
        except TailorError as error:
            if not self.is_stopped:
                self.error = " ".join(map(render.sentences, error.problems))
        except OSError as error:
            self.error = f"The results cannot be kept: {error.strerror}."
        finally:
            self.is_running = False

    def report(self, text: str, share: float) -> None:
        """Note what is done, and how much of it."""
        self.text, self.share = text, share

    def was_stopped(self) -> bool:
        """Return True once the user has asked for it."""
        return self.is_stopped

    def shown(self) -> str:
        """Return how far it is as HTML, or why it has ended without a result."""
        if self.is_running:
            return render.progress(self.text, self.share)
        return render.notice(self.error, "bad") if self.error else ""


@dataclass
class ExportActivities:
    """Last task of each run."""

    by_run: dict[str, ExportActivity] = field(default_factory=dict)

    def start(self, run: Run, text: str, work: Callable[[ExportActivity], object]) -> None:
        """Start a thread with work on the exports of a run, unless one is under way."""
        if self.is_running(run.id):
            return
        task = self.by_run[run.id] = ExportActivity(text)
        name = f"check exports of {run.id}"
        threading.Thread(target=task.run, args=(work,), name=name, daemon=True).start()

    def is_running(self, run_id: str) -> bool:
        """Return True while work on the exports of a run is under way."""
        task = self.by_run.get(run_id)
        return task is not None and task.is_running

    def stop(self, run_id: str) -> None:
        """Ask the work on a run to stop."""
        if task := self.by_run.get(run_id):
            task.is_stopped = True

    def shown(self, run_id: str) -> str:
        """Return how far the work on a run is as HTML."""
        task = self.by_run.get(run_id)
        return task.shown() if task else ""
