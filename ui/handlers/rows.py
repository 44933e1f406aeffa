"""Row events: how long the rows are in tokens, and rows as the model will see them."""

import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import gradio as gr

from core import runs
from core.dataset.preview import Preview
from core.dataset.token_lengths import RowLengths, length_problems
from core.job import PreviewError, Problem, SpecError, TailorError
from core.resolve import ResolvedJob
from core.runs import Home
from core.speed import RowStatistics
from ui import render
from ui.events import Updates
from ui.form import in_words
from ui.handlers.answer import Answer
from ui.handlers.reports import estimated_rows, file_version
from ui.render import rows as panel

LINE_QUERY = re.compile(r"line (\d{1,12})", re.IGNORECASE)
DataField = Literal["dataset", "eval_dataset"]
MAX_PREVIEWS = 3
"""Of the data as it is and as it is trained on, and of the evaluation file. Each has a child
process of some 200 MB with a tokenizer. The least recently used is closed."""
SECONDS_BETWEEN_TRIES = 30
"""A preview that failed, for want of a tokenizer for example, is not started at every edit."""
SHORTEST_MAX_LENGTH = 8
"""JobSpec allows no less."""


@dataclass(frozen=True)
class OpenPreview:
    """Preview with its first measurement, which waits for the child process to start."""

    preview: Preview
    first_lengths: Future[RowLengths]
    opened: float = field(default_factory=time.monotonic)


class Previews:
    """Previews that are open, the most recently used last."""

    def __init__(self, home: Home) -> None:
        self._cache = home.path / "lengths"
        self._opened: dict[tuple[object, ...], OpenPreview] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(MAX_PREVIEWS, "preview")

    def of_dataset(self, resolved: ResolvedJob) -> Preview:
        """Return the preview of a job's dataset."""
        return self._open(resolved).preview

    def of_training(self, resolved: ResolvedJob) -> Preview:
        """Return the preview of the rows that a job trains on, which may be mixed or limited."""
        return self._open(resolved, runs.writer_of_rows(resolved)).preview

    def training_lengths(self, resolved: ResolvedJob) -> RowLengths | None:
        """Return the lengths of the training rows measured so far, None while the child starts.

        Raises PreviewError, OSError.
        """
        return self._measured(self._open(resolved, runs.writer_of_rows(resolved)))

    def evaluation_lengths(self, resolved: ResolvedJob) -> RowLengths | None:
        """Return the lengths of the rows of the evaluation file measured so far.

        None without such a file, and while the child starts. Raises PreviewError, OSError.
        """
        if "eval_dataset" not in resolved.datasets:
            return None
        return self._measured(self._open(resolved, field="eval_dataset"))

    def _measured(self, opened: OpenPreview) -> RowLengths | None:
        if not opened.first_lengths.done():
            return None
        if error := opened.first_lengths.exception():
            if time.monotonic() > opened.opened + SECONDS_BETWEEN_TRIES:
                self._forget(opened)
            raise error
        try:
            return opened.preview.measured()
        except (PreviewError, OSError) as error:
            self._note_failure(opened, error)
            raise

    def measures_evaluation(self, resolved: ResolvedJob) -> bool:
        """Return True while the rows of an evaluation file are being measured."""
        try:
            lengths = self.evaluation_lengths(resolved)
        except (PreviewError, OSError):  # what is wrong with it is said where it is checked
            return False
        is_measured = lengths is not None and lengths.is_complete
        return "eval_dataset" in resolved.datasets and not is_measured

    def statistics(self, found: ResolvedJob) -> RowStatistics | None:
        """Return what is known of a job's rows without waiting: measured, else guessed."""
        max_length = found.job.max_length
        evaluation = None
        with suppress(PreviewError, OSError):
            evaluation = self.evaluation_lengths(found)
        with suppress(PreviewError, OSError):
            lengths = self.training_lengths(found)
            if lengths and lengths.readable:
                of_evaluation = evaluation.at(max_length) if evaluation else None
                return found.row_statistics(lengths.at(max_length), of_evaluation)
        return estimated_rows(found)

    def refusals(self, resolved: ResolvedJob) -> tuple[Problem, ...]:
        """Return why a training on these rows would fail, () if nothing is known against it."""
        try:
            lengths = self.training_lengths(resolved)
        except PreviewError as error:
            # A preview may fail where a training does not, but both need the model.
            return tuple(each for each in error.problems if each.field == "model")
        except OSError:
            return ()
        return length_problems(lengths, resolved.job) if lengths else ()

    def close(self) -> None:
        """End every child process."""
        with self._lock:
            for opened in self._opened.values():
                opened.preview.close()
            self._opened.clear()

    def _open(
        self,
        resolved: ResolvedJob,
        write_rows: Callable[[Path], Path] | None = None,
        field: DataField = "dataset",
    ) -> OpenPreview:
        """Return the preview of these rows. Open it if it is not open."""
        key = _key(resolved, field, is_written=write_rows is not None)
        with self._lock:
            opened = self._opened.pop(key, None)
            if opened is None:
                preview = Preview.for_job(
                    resolved.job,
                    resolved.datasets[field],
                    resolved.model.location,
                    cache=self._cache,
                    write_rows=write_rows,
                )
                opened = OpenPreview(preview, self._pool.submit(preview.measured))
            self._opened[key] = opened
            while len(self._opened) > MAX_PREVIEWS:
                oldest = next(iter(self._opened))
                self._pool.submit(self._opened.pop(oldest).preview.close)
            return opened

    def _note_failure(self, opened: OpenPreview, error: Exception) -> None:
        """Treat a child that died while it measured as one that never started.

        Another one takes seconds to start: no start of a run waits for it.
        """
        failed: Future[RowLengths] = Future()
        failed.set_exception(error)
        with self._lock:
            for key, other in self._opened.items():
                if other is opened:
                    self._opened[key] = OpenPreview(opened.preview, failed)

    def _forget(self, opened: OpenPreview) -> None:
        with self._lock:
            self._opened = {
                key: other for key, other in self._opened.items() if other is not opened
            }
        opened.preview.close()


def _key(resolved: ResolvedJob, field: DataField, is_written: bool) -> tuple[object, ...]:
    """Return what the rows of a job, and their tokens, depend on."""
    job = resolved.job
    key: tuple[object, ...] = (
        file_version(resolved.datasets[field]),
        resolved.model.location,
        job.revision,
        job.assistant_only_loss,
        job.use_chat_template,
        job.stage,
    )
    if is_written:
        mixed = tuple((file_version(path), weight) for path, weight in resolved.mix)
        has_eval_file = "eval_dataset" in resolved.datasets
        key += (mixed, job.max_rows, job.seed, job.eval_fraction, has_eval_file)
    return key


@dataclass(frozen=True)
class RowHandlers:
    """Events of the rows of the form's data."""

    previews: Previews

    def on_lengths(self, answer: Answer) -> Updates:
        """Show how long the rows are. While more are measured, the page asks again.

        Once all are measured, `measured` changes, which updates the estimate.
        """
        try:
            resolved = answer.require()
            measured = self.previews.training_lengths(resolved)
        except (SpecError, OSError):
            return _no_lengths("")
        except PreviewError as error:
            # A file without a valid row has its problems listed already.
            has_rows = answer.report is None or answer.report.valid_rows > 0
            if not has_rows:
                return _no_lengths("")
            return {**_no_lengths(""), "lengths": _notice(error)}
        if measured is None:
            waiting = {"lengths_timer": gr.Timer(active=True)}
            return _no_lengths("Measuring the rows ...") | waiting
        max_length = resolved.job.max_length
        lengths = measured.at(max_length)
        info = self.previews.of_training(resolved).info()
        refusals = length_problems(measured, resolved.job)
        is_complete = lengths.is_complete and not self.previews.measures_evaluation(resolved)
        return {
            "length_p95": _length_button(lengths.p95, max_length, "95 % of the rows"),
            "length_longest": _length_button(lengths.max, max_length, "longest row"),
            "lengths": panel.lengths(lengths, refusals, info.notes),
            "histogram": panel.histogram(lengths),
            "lengths_timer": gr.Timer(active=not is_complete),
            "measured": info.key if is_complete else "",
        }

    def on_set_length(self, which: Literal["p95", "max"], answer: Answer) -> Updates:
        """Set the maximum length that leaves 95 % of the rows whole, or every row."""
        try:
            resolved = answer.require()
            lengths = self.previews.of_training(resolved).measured().at(resolved.job.max_length)
        except (SpecError, PreviewError, OSError) as error:
            return {"lengths": _notice(error)}
        length = lengths.p95 if which == "p95" else lengths.max
        return {"max_length": max(SHORTEST_MAX_LENGTH, length)}

    def on_row(self, row_number: object, answer: Answer) -> Updates:
        """Show the row of that number, counted from 1, or the nearest one that exists."""
        try:
            resolved = answer.require()
            preview = self.previews.of_dataset(resolved)
            num_rows = preview.info().rows
            number = min(max(1, _whole(row_number)), num_rows)
            (row,) = preview.rows(number - 1, 1, resolved.job.max_length)
        except (SpecError, PreviewError, OSError) as error:
            return {"row": _notice(error)}
        return {"row_number": number, "row": panel.row(row, num_rows)}

    def on_turn(self, by: int, row_number: object, answer: Answer) -> Updates:
        """Show the row that is so many after the shown one, or before it."""
        return self.on_row(_whole(row_number) + by, answer)

    def on_find_row(self, row_number: object, row_query: str, answer: Answer) -> Updates:
        """Show the next row that holds a text, searching round the end; or that of `line 27`."""
        query = row_query.strip()
        if not query:
            return {}
        line = LINE_QUERY.fullmatch(query)
        try:
            preview = self.previews.of_dataset(answer.require())
            if line:
                index: int | None = preview.index_of(int(line[1]))
            else:
                index = preview.find(row_query, _whole(row_number))
        except (SpecError, PreviewError, OSError) as error:
            return {"row": _notice(error)}
        if index is None:
            return {"row": render.notice(f"No row contains {row_query!r}.", "bad")}
        return self.on_row(index + 1, answer)


def _notice(error: TailorError | OSError) -> str:
    """Return why rows cannot be shown, and what to do about it."""
    if isinstance(error, SpecError):
        return render.notice(in_words(error), "bad")
    if isinstance(error, TailorError):
        return render.notice(" ".join(map(render.sentences, error.problems)), "bad")
    return render.notice(f"The rows cannot be read: {error.strerror or error}.", "bad")


def _no_lengths(reason: str) -> Updates:
    return {
        "length_p95": gr.update(visible=False),
        "length_longest": gr.update(visible=False),
        "lengths": render.notice(reason, "plain"),
        "histogram": "",
        "lengths_timer": gr.Timer(active=False),
    }


def _length_button(tokens: int, max_length: int, whose: str) -> object:
    """Offer a maximum length, unless it is set already."""
    is_other = 0 < tokens != max_length
    return gr.update(visible=is_other, value=f"Max length {tokens:,} · {whose}")


def _whole(number: object) -> int:
    """Return a number from the browser as an int, 1 if it is none."""
    try:
        return int(float(str(number)))
    except (ValueError, OverflowError):
        return 1
