"""What happens to data that is not JSON lines yet: tables and datasets of the Hub come in, columns get our names."""

import secrets
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import gradio as gr

from core.dataset import (
    DatasetError,
    DatasetReport,
    Progress,
    Taken,
    is_hub_dataset,
    map_columns,
    must_be_taken_in,
    take_in,
)
from core.resolve import dataset_path
from core.runs import Home
from ui import render
from ui.handlers.shown import Shown

HIDDEN: Shown = {"taking": gr.Timer(active=False), "cancel_taking": gr.update(visible=False)}


@dataclass
class Taking:
    """One source on its way in."""

    source: str
    outcome: Future[Taken] = field(init=False)
    progress: Progress = field(default_factory=lambda: Progress(0, 0, "starting"))
    cancelled: threading.Event = field(default_factory=threading.Event)

    def advance(self, progress: Progress) -> None:
        self.progress = progress


class Takings:
    """The sources that are being taken in, by a name that the page keeps."""

    def __init__(self, home: Home):
        self._home = home
        self._under_way: dict[str, Taking] = {}
        self._pool = ThreadPoolExecutor(2, "take in")

    def begin(self, source: str) -> str:
        """Starts to take a source in. Returns the name to ask for it by."""
        name, taking = secrets.token_hex(6), Taking(source)
        folder = self._home.uploads / name
        folder.mkdir()
        taking.outcome = self._pool.submit(
            take_in, source, folder, on_progress=taking.advance, is_cancelled=taking.cancelled.is_set
        )
        self._under_way[name] = taking
        return name

    def find(self, name: str) -> Taking | None:
        """The source of that name, while it is under way or has not been asked for since."""
        return self._under_way.get(name)

    def finish(self, name: str) -> None:
        """It has been told how it ended."""
        self._under_way.pop(name, None)


class IntakeHandlers:
    """The events of data on its way in, over one home folder."""

    home: Home
    takings: Takings

    def on_take_in(self, dataset: str) -> Shown:
        """Takes in what the data field names."""
        return self.on_taking(self.takings.begin(dataset if is_hub_dataset(dataset) else str(dataset_path(dataset))))

    def on_taking(self, taken: str) -> Shown:
        """How far the source is; at its end it becomes the data, or the reason is told."""
        taking = self.takings.find(taken)
        if taking is None:
            return HIDDEN
        if not taking.outcome.done():
            progress = taking.progress
            said = render.progress(f"{progress.doing.capitalize()} {taking.source}", progress.share)
            return {
                "taken": taken,
                "mended": said,
                "taking": gr.Timer(active=True),
                "cancel_taking": gr.update(visible=True),
                "take_in": gr.update(visible=False),
            }
        self.takings.finish(taken)
        try:
            found = taking.outcome.result()
        except (DatasetError, OSError) as error:
            return HIDDEN | {"mended": render.notice(f"Not taken in. {error}", "bad")}
        said = " ".join((*found.actions, f"{found.rows:,} rows."))
        return HIDDEN | {"dataset": str(found.path), "mended": render.notice(said)}

    def on_cancel_taking(self, taken: str) -> Shown:
        """Calls it off."""
        if taking := self.takings.find(taken):
            taking.cancelled.set()
        return {}

    def on_map_columns(self, dataset: str, stage: str, mapping: str) -> Shown:
        """Writes the data again under our names for its columns, and takes the new file as the data."""
        pairs = dict(_pair(line) for line in mapping.splitlines() if line.strip())
        source = dataset_path(dataset, stage)
        try:
            target = self.home.uploads / secrets.token_hex(6) / source.with_suffix(".jsonl").name
            target.parent.mkdir()
            written = map_columns(source, target, pairs)
        except (DatasetError, OSError) as error:
            return {"mended": render.notice(f"Nothing was changed. {error}", "bad")}
        return {"dataset": str(written.path), "mended": render.notice(" ".join(written.actions))}


def shown_intake(fields: Mapping[str, object], report: DatasetReport | None, is_new: bool) -> Shown:
    """The button for a source that must be taken in; for data that is new here, the place to say what its columns are.

    It opens by itself where their meaning is not known; elsewhere it holds the names that were recognised.
    """
    take_in: Shown = {"take_in": gr.update(visible=must_be_taken_in(str(fields.get("dataset") or "")))}
    if not is_new:
        return take_in
    names = report.found_columns if report else ()
    is_unknown = bool(names) and report is not None and not report.dataset_type
    mapping = report.suggestion if report and is_unknown else {name: name for name in names}
    return take_in | {
        "columns_panel": gr.update(visible=bool(names) and fields["dataset"] != "demo", open=is_unknown),
        "columns": "\n".join(f"{ours} = {theirs}" for ours, theirs in mapping.items()),
        "found_columns": render.notice(f"The file has the columns {', '.join(names)}." if names else "", "plain"),
    }


def _pair(line: str) -> tuple[str, str]:
    ours, _, theirs = line.partition("=")
    return ours.strip(), theirs.strip()
