"""What happens on "Check exactly": the job is traced in a child, and its peaks stand beside the estimate's."""

import threading
from collections.abc import Mapping
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
from core.resolve import ResolvedJob, resolve
from core.runs import Home
from core.speed import RowStatistics
from ui import render
from ui.handlers.preview import Previews
from ui.handlers.shown import Shown
from ui.render import exact as panel
from ui.render.estimate import estimate_panel

MOST_REMEMBERED = 50


@dataclass
class Check:
    """One trace, under way or done."""

    outcome: Future[TraceResult] = field(init=False)
    share: float = 0.0
    """How much of it is done, from 0 to 1."""

    def advance(self, share: float) -> None:
        self.share = share


@dataclass(frozen=True)
class Checks:
    """The traces of this app, one at a time: each holds a child with torch."""

    home: Home
    _known: dict[str, Check] = field(default_factory=dict)
    _wanted: set[str] = field(default_factory=set)
    """Asked for by hand and not shown yet. The rows may be measured meanwhile, which changes what is to be traced."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "trace"))

    def find(self, resolved: ResolvedJob) -> Check | None:
        """The trace of a job, if one was asked for; begun anew where its rows turned out to be of another length."""
        found = self._known.get(self._request(resolved).key)
        return self.begin(resolved) if found is None and _wish(resolved) in self._wanted else found

    def ask(self, resolved: ResolvedJob) -> Check:
        """The trace of a job that a person wants."""
        self._wanted.add(_wish(resolved))
        return self.begin(resolved)

    def is_shown(self, resolved: ResolvedJob) -> None:
        """The person has what was asked for, unless the rows are still being measured."""
        if resolved.rows and resolved.rows.max_tokens:
            self._wanted.discard(_wish(resolved))

    def begin(self, resolved: ResolvedJob) -> Check:
        """The trace of a job, started if it was not; a failed one is started again."""
        request = self._request(resolved)
        with self._lock:
            for key in [
                key
                for key, other in self._known.items()
                if key != request.key and other.outcome.cancel()
            ]:
                del self._known[key]  # it had not begun, and nobody waits for it any more
            check = self._known.pop(request.key, None)
            if check is None or (check.outcome.done() and check.outcome.exception()):
                check = self._submit(request)
            self._known[request.key] = check
            while len(self._known) > MOST_REMEMBERED:
                self._known.pop(next(iter(self._known)))
        return check

    def estimate(self, resolved: ResolvedJob) -> MemoryEstimate:
        """The estimate of a job that has been traced. Raises TraceError."""
        request = self._request(resolved)
        return estimate_by_tracing(request, self.home.path / "traces")

    def _submit(self, request: TraceRequest) -> Check:
        check = Check()
        asked = (request, self.home.path / "traces", check.advance)
        check.outcome = self._pool.submit(trace_peak_memory, *asked)
        return check

    @staticmethod
    def _request(resolved: ResolvedJob) -> TraceRequest:
        """The job as it is estimated: with rows that are as long as they are known to be."""
        job, rows = resolved.job, resolved.rows
        if rows and rows.max_tokens and not job.packing:
            job = job.model_copy(update={"max_length": min(job.max_length, rows.max_tokens)})
        return TraceRequest(job, resolved.model.config, resolved.gpu)


def _wish(resolved: ResolvedJob) -> str:
    """A name for what was asked for, whatever the profile chooses once more is known of the rows."""
    job = resolved.job
    if job.profile != "custom":
        job = job.model_copy(
            update={name: JobSpec.model_fields[name].default for name in PLANNED_FIELDS}
        )
    return TraceRequest(job, resolved.model.config, resolved.gpu).key


class ExactHandlers:
    """The events of the exact check, over one home folder."""

    checks: Checks
    previews: Previews

    def on_check_exactly(self, **form: object) -> Shown:
        """Starts the trace of the form's job."""
        try:
            self.checks.ask(resolve(form, rows=self.previews.statistics(form)))
        except SpecError as error:
            return {"exact": render.notice("; ".join(map(str, error.problems)), "bad")}
        return self.on_checking(**form)

    def on_checking(self, **form: object) -> Shown:
        """How far the trace of the form's job is, or what it found."""
        return shown_check(self.checks, form, self.previews.statistics(form))


def shown_check(checks: Checks, form: Mapping[str, object], rows: RowStatistics | None) -> Shown:
    """The place for the exact check: empty, progress, or both estimates side by side.

    A model that has no estimate of its own is traced unasked.
    """
    try:
        resolved = resolve(form, rows=rows)
        check = checks.find(resolved) if resolved.model.shape else checks.begin(resolved)
    except SpecError:
        check = None
    if check is None:
        return {
            "exact": "",
            "checking": gr.Timer(active=False),
            "check_exactly": gr.update(interactive=True),
        }
    if not check.outcome.done():
        waits = render.progress("Taking one step on tensors without data", check.share)
        return {
            "exact": waits,
            "checking": gr.Timer(active=True),
            "check_exactly": gr.update(interactive=False),
        }
    checks.is_shown(resolved)
    ended = {"checking": gr.Timer(active=False), "check_exactly": gr.update(interactive=True)}
    try:
        traced = check.outcome.result()
        if resolved.model.shape:
            return ended | {"exact": _beside(resolved, traced)}
        found = checks.estimate(resolved)
    except (TraceError, SpecError) as error:
        return ended | {"exact": render.notice(str(error), "bad")}
    return ended | {
        "estimate": estimate_panel(found),
        "exact": render.notice(panel.told(traced), "plain"),
    }


def _beside(resolved: ResolvedJob, traced: TraceResult) -> str:
    """The trace beside the estimate of the same step; of a compiled job, what it takes compiled too."""
    traced_job = uncompiled(resolved.job)
    compiled = resolved.estimate() if traced_job != resolved.job else None
    return panel.side_by_side(replace(resolved, job=traced_job).estimate(), traced, compiled)
