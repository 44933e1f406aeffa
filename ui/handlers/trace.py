"""Exact check: trace one step of the job in a child process and show it beside the estimate."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import gradio as gr

from core.advise import PLANNED_FIELDS
from core.job import JobSpec, SpecError, TraceError
from core.memory.trace_check import (
    TraceRequest,
    TraceResult,
    estimate_by_tracing,
    trace_peak_memory,
)
from core.resolve import ResolvedJob, estimate_to_compare, request_to_trace
from core.runs import Home
from core.wording import trace_sentence
from ui import render
from ui.events import Updates
from ui.handlers.answer import Answer, answer_values
from ui.handlers.rows import Previews
from ui.render import estimate as estimate_panel
from ui.render import trace as panel


@dataclass
class TraceTask:
    """One trace, running or done."""

    outcome: Future[TraceResult] = field(init=False)
    share: float = 0.0
    """Done so far, from 0 to 1."""

    def advance(self, share: float) -> None:
        self.share = share

    @property
    def has_failed(self) -> bool:
        return self.outcome.done() and self.outcome.exception() is not None


class TraceTasks:
    """Traces of this app by request. One runs at a time: each needs a child process with torch."""

    def __init__(self, home: Home, trace: Callable[..., TraceResult] = trace_peak_memory) -> None:
        self.cache = home.path / "traces"
        self._trace = trace
        self._tasks: dict[str, TraceTask] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(1, "trace")

    def find(self, request: TraceRequest, *, retries: bool = False) -> TraceTask:
        """Return the trace of a job. Start it if it is new or, with `retries`, has failed."""
        with self._lock:
            # Only the newest request is still of interest: drop those that have not begun.
            for key, other in list(self._tasks.items()):
                if key != request.key and other.outcome.cancel():
                    del self._tasks[key]
            task = self._tasks.get(request.key)
            if task is None or (retries and task.has_failed):
                task = self._tasks[request.key] = TraceTask()
                task.outcome = self._pool.submit(self._trace, request, self.cache, task.advance)
        return task


def key_before_measuring(resolved: ResolvedJob) -> str:
    """Return a key of the job that stays the same when its rows are measured.

    The measured rows change the length to trace, and what a profile chooses.
    """
    job = resolved.job
    if job.profile != "custom":
        defaults = {name: JobSpec.model_fields[name].default for name in PLANNED_FIELDS}
        job = job.model_copy(update=defaults)
    return TraceRequest(job, resolved.model.config, resolved.gpu).key


@dataclass(frozen=True)
class TraceHandlers:
    """Events of the exact check.

    The state `wanted_trace` is the key of the job that the user asked about: until the rows are
    measured the one that this does not change, afterwards that of the exact request.
    """

    home: Home
    previews: Previews
    tasks: TraceTasks

    def on_check_exactly(self, **form: object) -> Updates:
        """Start the trace of the form's job."""
        # The last edit may not have been answered yet: the press is about the form as it is now.
        answer = answer_values(self.home, self.previews.statistics, form)
        try:
            resolved = answer.require()
        except SpecError as error:
            return {"trace": render.notice(str(error), "bad")}
        self.tasks.find(request_to_trace(resolved), retries=True)
        wanted = key_before_measuring(resolved)
        return {"wanted_trace": wanted, **self.on_trace_progress(answer, wanted)}

    def on_trace_progress(self, answer: Answer, wanted_trace: str) -> Updates:
        """Show nothing, progress, or the trace beside the estimate.

        A model of unknown architecture is traced without being asked.
        """
        idle: Updates = {
            "trace": "",
            "trace_timer": gr.Timer(active=False),
            "check_exactly": gr.update(interactive=True),
        }
        resolved = answer.resolved
        if resolved is None:
            return idle
        request = request_to_trace(resolved)
        is_wanted = wanted_trace in (request.key, key_before_measuring(resolved))
        if resolved.model.shape is not None and not is_wanted:
            return idle
        task = self.tasks.find(request)
        if not task.outcome.done():
            return {
                "trace": render.progress("Tracing one training step", task.share),
                "trace_timer": gr.Timer(active=True),
                "check_exactly": gr.update(interactive=False),
            }
        if resolved.rows and resolved.rows.max_tokens:
            idle["wanted_trace"] = request.key
        return idle | self._outcome(resolved, request, task)

    def _outcome(self, resolved: ResolvedJob, request: TraceRequest, task: TraceTask) -> Updates:
        try:
            traced = task.outcome.result()
            if resolved.model.shape is not None:
                return {"trace": _beside(resolved, traced)}
            estimate = estimate_by_tracing(request, self.tasks.cache)
        except (TraceError, SpecError) as error:
            return {"trace": render.notice(str(error), "bad")}
        return {
            "estimate": estimate_panel.estimate_panel(estimate),
            "trace": render.notice(trace_sentence(traced, resolved.job.num_devices), "plain"),
        }


def _beside(resolved: ResolvedJob, traced: TraceResult) -> str:
    """Compare the trace with the estimate of the same step."""
    compiled = resolved.estimate() if resolved.job.torch_compile else None
    estimate = estimate_to_compare(resolved)
    return panel.side_by_side(estimate, traced, compiled, resolved.job.num_devices)
