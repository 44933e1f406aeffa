"""What happens when the data is looked at: rows as the model will see them, and how long they are."""

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import gradio as gr

from core import dataset, runs
from core.dataset import RowLengths
from core.dataset.preview import Preview
from core.job import PreviewError, Problem, SpecError
from core.resolve import ResolvedJob, resolve
from core.runs import Home
from core.speed import RowStatistics
from ui import render
from ui.handlers.data import report_of, row_statistics
from ui.handlers.shown import Shown
from ui.render import rows as panel

LINE = re.compile(r"line (\d{1,12})", re.IGNORECASE)
MOST_PREVIEWS = 2
"""Children that hold a tokenizer, each of some 200 MB; the one that was not asked for longest is ended."""


@dataclass(frozen=True)
class Opened:
    """A preview, and the first look at its lengths, for which its child must be started."""

    preview: Preview
    first_look: Future[RowLengths]


class Previews:
    """The previews that are open, the newest last."""

    def __init__(self, home: Home) -> None:
        self._cache = home.path / "lengths"
        self._opened: dict[tuple[object, ...], Opened] = {}
        self._lock = threading.Lock()
        self._starting = ThreadPoolExecutor(MOST_PREVIEWS, "preview")

    def of(self, resolved: ResolvedJob) -> Preview:
        """The preview of a job's dataset; opened if it is not yet."""
        return self._open(resolved).preview

    def trained(self, resolved: ResolvedJob) -> Preview:
        """The preview of the rows that a job trains on: those of its dataset, unless it is mixed or shortened."""
        return self._open(resolved, runs.writer_of_rows(resolved)).preview

    def trained_lengths(self, resolved: ResolvedJob) -> RowLengths | None:
        """The lengths of those rows as far as they are measured; None while the child starts. Raises PreviewError,
        OSError."""
        opened = self._open(resolved, runs.writer_of_rows(resolved))
        if not opened.first_look.done():
            return None
        if error := opened.first_look.exception():
            self._forget(opened)  # asked again, it may go better
            raise error
        return opened.preview.measured()

    def statistics(self, form: Mapping[str, object]) -> RowStatistics | None:
        """What is known of the rows of a form's data without waiting: measured lengths, else a guess by their bytes."""
        with suppress(SpecError, PreviewError, OSError):
            resolved = resolve(form)
            if (lengths := self.trained_lengths(resolved)) and lengths.readable:
                return resolved.row_statistics(lengths.at(resolved.job.max_length))
        return row_statistics(form)

    def refusals(self, resolved: ResolvedJob) -> tuple[Problem, ...]:
        """Why these rows should not be trained on; nothing where their lengths are not known."""
        with suppress(PreviewError, OSError):
            lengths = self.trained_lengths(resolved)
            return dataset.refusals(lengths, resolved.job) if lengths else ()
        return ()

    def close(self) -> None:
        """Ends every child."""
        with self._lock:
            for opened in self._opened.values():
                opened.preview.close()
            self._opened.clear()

    def _open(
        self, resolved: ResolvedJob, write_rows: Callable[[Path], Path] | None = None
    ) -> Opened:
        path, job, location = resolved.datasets["dataset"], resolved.job, resolved.model.location
        key: tuple[object, ...] = (
            _stamp(path),
            location,
            job.revision,
            job.assistant_only_loss,
            job.stage,
        )
        if write_rows:
            weighted = tuple((_stamp(each), weight) for each, weight in resolved.mix)
            key += (
                weighted,
                job.max_rows,
                job.seed,
                job.eval_fraction,
                "eval_dataset" in resolved.datasets,
            )
        with self._lock:
            opened = self._opened.pop(key, None)
            if opened is None:
                seen_by = (location, job.revision, job.assistant_only_loss)
                preview = Preview(
                    path, *seen_by, stage=job.stage, cache=self._cache, write_rows=write_rows
                )
                opened = Opened(preview, self._starting.submit(preview.measured))
            self._opened[key] = opened
            while len(self._opened) > MOST_PREVIEWS:
                self._starting.submit(self._opened.pop(next(iter(self._opened))).preview.close)
            return opened

    def _forget(self, opened: Opened) -> None:
        with self._lock:
            self._opened = {
                key: other for key, other in self._opened.items() if other is not opened
            }
        opened.preview.close()


class PreviewHandlers:
    """The events of the look at the data."""

    previews: Previews

    def on_lengths(self, **form: object) -> Shown:
        """How long the rows are, as far as they are measured; while more are to come the page asks again.

        Once all are, `measured` changes, and the estimate with it.
        """
        try:
            resolved = resolve(form)
            measured = self.previews.trained_lengths(resolved)
        except (SpecError, OSError):
            return _no_lengths("")
        except PreviewError as error:
            report = report_of(form)
            return _no_lengths(str(error) if report is None or report.valid_rows else "")
        if measured is None:
            return _no_lengths("Measuring the rows ...") | {"measuring": gr.Timer(active=True)}
        max_length = resolved.job.max_length
        found, about = measured.at(max_length), self.previews.trained(resolved).about()
        wanted = {
            "length_p95": (found.p95, "95 % of the rows"),
            "length_longest": (found.max, "the longest row"),
        }
        buttons = {
            name: gr.update(
                visible=0 < tokens != max_length, value=f"Max length {tokens:,} · {whose}"
            )
            for name, (tokens, whose) in wanted.items()
        }
        return buttons | {
            "lengths": panel.lengths(found, dataset.refusals(measured, resolved.job), about.notes),
            "histogram": panel.histogram(found),
            "measuring": gr.Timer(active=not found.is_complete),
            "measured": about.key if found.is_complete else "",
        }

    def on_length_p95(self, **form: object) -> Shown:
        """Rows are cut so that 95 % of them stay whole."""
        return self._set_length("p95", form)

    def on_length_longest(self, **form: object) -> Shown:
        """No row is cut."""
        return self._set_length("max", form)

    def _set_length(self, which: str, form: Mapping[str, object]) -> Shown:
        with _telling_why() as said:
            resolved = resolve(form)
            lengths = self.previews.trained(resolved).lengths(resolved.job.max_length)
            return {"max_length": max(8, getattr(lengths, which))}
        return {"lengths": said[0]}

    def on_row(self, row_number: object, **form: object) -> Shown:
        """The row of that number, counted from 1; a number beyond the ends is that of the first or the last row."""
        with _telling_why() as said:
            resolved = resolve(form)
            preview = self.previews.of(resolved)
            last = preview.about().rows
            number = min(max(1, _whole(row_number)), last)
            (row,) = preview.rows(number - 1, 1, resolved.job.max_length)
            return {"row_number": number, "row": panel.row(row, last)}
        return {"row": said[0]}

    def on_next_row(self, row_number: object, **form: object) -> Shown:
        """One row on."""
        return self.on_row(_whole(row_number) + 1, **form)

    def on_previous_row(self, row_number: object, **form: object) -> Shown:
        """One row back."""
        return self.on_row(_whole(row_number) - 1, **form)

    def on_find_row(self, row_number: object, wanted: str, **form: object) -> Shown:
        """The next row that holds a text, from the one after the shown row on and round the end; or `line 27`."""
        if not wanted.strip():
            return {}
        with _telling_why() as said:
            preview, line = self.previews.of(resolve(form)), LINE.fullmatch(wanted.strip())
            found = (
                preview.index_of(int(line[1])) if line else preview.find(wanted, _whole(row_number))
            )
            if found is None:
                return {"row": render.notice(f"No row holds {wanted!r}.", "bad")}
            return self.on_row(found + 1, **form)
        return {"row": said[0]}


def _stamp(path: Path) -> tuple[object, ...]:
    """Changes whenever a file is written to."""
    stat = path.stat()
    return path, stat.st_mtime_ns, stat.st_size


def _no_lengths(reason: str) -> Shown:
    hidden = {name: gr.update(visible=False) for name in ("length_p95", "length_longest")}
    said = render.notice(reason, "plain")
    return hidden | {"lengths": said, "histogram": "", "measuring": gr.Timer(active=False)}


@contextmanager
def _telling_why() -> Iterator[list[str]]:
    """Keeps the reason, as HTML, where a row cannot be shown."""
    said: list[str] = []
    try:
        yield said
    except SpecError as error:
        said.append(render.notice("; ".join(map(str, error.problems)), "bad"))
    except (PreviewError, OSError) as error:
        said.append(render.notice(str(error), "bad"))


def _whole(number: object) -> int:
    try:
        return int(float(str(number)))
    except (ValueError, OverflowError):
        return 1
