"""Exact check: trace one step of the job in a child process and show it beside the estimate."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import gradio as gr

from core.advise import PLANNED_FIELDS
from core.job import JobSpec, SpecError, TraceError
from core.memory import MemoryEstimate
from core.memory.trace_check import (
    TraceRequest,
    TraceResult,
    estimate_by_tracing,
    trace_peak_memory,
    uncompiled,
)
from core.resolve import ResolvedJob
from core.runs import Home
from ui import render
from ui.events import Updates
from ui.handlers.answer import Answer, answer_values
from ui.handlers.rows import Previews
from ui.render import estimate as estimate_panel
from ui.render import trace as panel

MAX_REMEMBERED = 50


@dataclass
class TraceTask:
    """One trace, running or done."""

    outcome: Future[TraceResult] = field(init=False)
    share: float = 0.0
    """Done so far, from 0 to 1."""

    def advance(self, share: float) -> None:
        self.share = share


class TraceTasks:
    """Traces of this app. One runs at a time, because each needs a child process with torch."""

    def __init__(self, home: Home, trace: Callable[..., TraceResult] = trace_peak_memory) -> None:
        self._cache = home.path / "traces"
        self._trace = trace
        self._tasks: dict[str, TraceTask] = {}
        self._wanted: set[str] = set()
        """Jobs that the user asked about and has not seen the answer for.

        While a trace waits, the rows may be measured, which changes the job that must be traced.
        """
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(1, "trace")

    def find(self, resolved: ResolvedJob) -> TraceTask | None:
        """Return the trace of a job if the user asked for it, of its rows as they are known now."""
        task = self._tasks.get(self._request(resolved).key)
        if task is None and _key_without_plan(resolved) in self._wanted:
            return self.begin(resolved)
        return task

    def ask(self, resolved: ResolvedJob) -> TraceTask:
        """Return the trace of a job that the user asked for."""
        self._wanted.add(_key_without_plan(resolved))
        return self.begin(resolved)

    def note_shown(self, resolved: ResolvedJob) -> None:
        """Note that the answer has been shown. It is final once the rows are measured."""
        if resolved.rows and resolved.rows.max_tokens:
            self._wanted.discard(_key_without_plan(resolved))

    def begin(self, resolved: ResolvedJob) -> TraceTask:
        """Return the trace of a job. Start it if it is new or has failed."""
        request = self._request(resolved)
        with self._lock:
            self._cancel_waiting(request.key)
            task = self._tasks.pop(request.key, None)
            if task is None or (task.outcome.done() and task.outcome.exception()):
                task = self._submit(request)
            self._tasks[request.key] = task
            while len(self._tasks) > MAX_REMEMBERED:
                self._tasks.pop(next(iter(self._tasks)))
        return task

    def estimate(self, resolved: ResolvedJob) -> MemoryEstimate:
        """Return the estimate from a trace that is done. Raises TraceError."""
        return estimate_by_tracing(self._request(resolved), self._cache)

    def _cancel_waiting(self, wanted: str) -> None:
        """Drop traces that have not begun: only the newest one is still of interest."""
        for key, task in list(self._tasks.items()):
            if key != wanted and task.outcome.cancel():
                del self._tasks[key]

    def _submit(self, request: TraceRequest) -> TraceTask:
        task = TraceTask()
        task.outcome = self._pool.submit(self._trace, request, self._cache, task.advance)
        return task

    @staticmethod
    def _request(resolved: ResolvedJob) -> TraceRequest:
        """Return what to trace: like the estimate, rows no longer than they are known to be."""
        job = resolved.job
        rows = resolved.rows
        if rows and rows.max_tokens and not job.packing:
            longest = min(job.max_length, rows.max_tokens)
            job = job.model_copy(update={"max_length": longest})
        return TraceRequest(job, resolved.model.config, resolved.gpu)


def _key_without_plan(resolved: ResolvedJob) -> str:
    """Return a key of the job that stays the same when the profile chooses differently."""
    job = resolved.job
    if job.profile != "custom":
        defaults = {name: JobSpec.model_fields[name].default for name in PLANNED_FIELDS}
        job = job.model_copy(update=defaults)
    return TraceRequest(job, resolved.model.config, resolved.gpu).key


class TraceHandlers:
    """Events of the exact check."""

    def __init__(self, home: Home, previews: Previews) -> None:
        self.home = home
        self.previews = previews
        self.tasks = TraceTasks(home)

    def on_check_exactly(self, **form: object) -> Updates:
        """Start the trace of the form's job."""
        # The last edit may not have been answered yet: the press is about the form as it is now.
        answer = answer_values(self.home, self.previews.statistics, form)
        try:
            self.tasks.ask(answer.require())
        except SpecError as error:
            return {"trace": render.notice(str(error), "bad")}
        return self.show(answer)

    def on_trace_progress(self, answer: Answer) -> Updates:
        """Show how far the trace is, or what it found."""
        return self.show(answer)

    def show(self, answer: Answer) -> Updates:
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
        if resolved.model.shape is None:
            task: TraceTask | None = self.tasks.begin(resolved)
        else:
            task = self.tasks.find(resolved)
        if task is None:
            return idle
        if not task.outcome.done():
            return {
                "trace": render.progress("Tracing one training step", task.share),
                "trace_timer": gr.Timer(active=True),
                "check_exactly": gr.update(interactive=False),
            }
        self.tasks.note_shown(resolved)
        return idle | self._outcome(resolved, task)

    def _outcome(self, resolved: ResolvedJob, task: TraceTask) -> Updates:
        try:
            traced = task.outcome.result()
            if resolved.model.shape is not None:
                return {"trace": _beside(resolved, traced)}
            estimate = self.tasks.estimate(resolved)
        except (TraceError, SpecError) as error:
            return {"trace": render.notice(str(error), "bad")}
        return {
            "estimate": estimate_panel.estimate_panel(estimate),
            "trace": render.notice(panel.trace_sentence(traced), "plain"),
        }


def _beside(resolved: ResolvedJob, traced: TraceResult) -> str:
    """Compare the trace with the estimate of the same step, which is never compiled."""
    traced_job = uncompiled(resolved.job)
    estimate = replace(resolved, job=traced_job).estimate()
    compiled = None
    if traced_job != resolved.job:
        compiled = resolved.estimate()
    return panel.side_by_side(estimate, traced, compiled)
