"""What happens to data that is not JSON lines yet: tables and datasets of the Hub come in."""

import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import gradio as gr

from core.dataset import (
    Imported,
    ImportProgress,
    counted,
    import_dataset,
    is_hub_dataset,
    must_be_imported,
)
from core.job import DatasetError
from core.resolve import dataset_path
from core.runs import Home, new_folder
from ui import render
from ui.handlers.menu import taken_up
from ui.handlers.shown import Shown

HIDDEN: Shown = {"taking": gr.Timer(active=False), "cancel_taking": gr.update(visible=False)}


@dataclass
class Taking:
    """One source on its way in."""

    source: str
    outcome: Future[Imported] = field(init=False)
    progress: ImportProgress = field(default_factory=lambda: ImportProgress("starting", 0))
    cancelled: threading.Event = field(default_factory=threading.Event)

    def advance(self, progress: ImportProgress) -> None:
        self.progress = progress


class Takings:
    """The sources that are being taken in, by a name that the page keeps."""

    def __init__(self, home: Home):
        self._home = home
        self._under_way: dict[str, Taking] = {}
        self._pool = ThreadPoolExecutor(2, "take in")

    def begin(self, source: str) -> str:
        """Starts to take a source in. Returns the name to ask for it by."""
        folder, taking = new_folder(self._home), Taking(source)
        taking.outcome = self._pool.submit(
            import_dataset,
            source,
            folder,
            on_progress=taking.advance,
            is_cancelled=taking.cancelled.is_set,
        )
        self._under_way[folder.name] = taking
        return folder.name

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
        return self.on_taking(
            self.takings.begin(dataset if is_hub_dataset(dataset) else str(dataset_path(dataset)))
        )

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
        said = " ".join((*found.actions, f"{counted(found.rows, 'row')}."))
        return HIDDEN | taken_up(self.home, found.path) | {"mended": render.notice(said)}

    def on_cancel_taking(self, taken: str) -> Shown:
        """Calls it off."""
        if taking := self.takings.find(taken):
            taking.cancelled.set()
        return {}


def shown_intake(fields: Mapping[str, object]) -> Shown:
    """The button for a source that must be taken in."""
    return {"take_in": gr.update(visible=must_be_imported(str(fields.get("dataset") or "")))}
