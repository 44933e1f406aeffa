"""Imports of tables and Hub datasets, which run in threads while the page shows their progress."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import gradio as gr

from core.dataset import counted
from core.dataset.intake import Imported, ImportProgress, import_dataset
from core.job import DatasetError
from core.runs import Home
from ui import render
from ui.events import Updates

MAX_AT_ONCE = 2


@dataclass
class ImportTask:
    """One source that is being imported."""

    source: str
    outcome: Future[Imported] = field(init=False)
    progress: ImportProgress = field(default_factory=lambda: ImportProgress("starting", 0.0))
    cancelled: threading.Event = field(default_factory=threading.Event)

    def advance(self, progress: ImportProgress) -> None:
        self.progress = progress


class Imports:
    """Imports that are running, or whose end has not been shown yet, by an id that a page keeps."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._tasks: dict[str, ImportTask] = {}
        self._pool = ThreadPoolExecutor(MAX_AT_ONCE, "import")

    def begin(self, source: str) -> str:
        """Start to import a source. Return the id of the import. Raises OSError."""
        folder = self._home.new_upload_folder()
        task = ImportTask(source)
        task.outcome = self._pool.submit(
            import_dataset,
            source,
            folder,
            on_progress=task.advance,
            is_cancelled=task.cancelled.is_set,
        )
        self._tasks[folder.name] = task
        return folder.name

    def find(self, import_id: str) -> ImportTask | None:
        """Return an import, None once its end has been shown."""
        return self._tasks.get(import_id)

    def forget(self, import_id: str) -> None:
        """Drop an import whose end is shown now."""
        self._tasks.pop(import_id, None)

    def cancel(self, import_id: str) -> None:
        """Stop an import."""
        if task := self.find(import_id):
            task.cancelled.set()


def show_import(imports: Imports, import_id: str) -> tuple[Updates, Path | None]:
    """Return what to show of an import, and its file once it is finished."""
    hidden: Updates = {
        "import_timer": gr.Timer(active=False),
        "cancel_import": gr.update(visible=False),
    }
    task = imports.find(import_id)
    if task is None:
        return hidden, None
    if not task.outcome.done():
        doing = f"{task.progress.doing.capitalize()} {task.source}"
        shown: Updates = {
            "import_id": import_id,
            "data_message": render.progress(doing, task.progress.share),
            "import_timer": gr.Timer(active=True),
            "cancel_import": gr.update(visible=True),
            "import_data": gr.update(visible=False),
        }
        return shown, None
    imports.forget(import_id)
    try:
        imported = task.outcome.result()
    except (DatasetError, OSError) as error:
        failed = render.notice(f"Not imported. {error}", "bad")
        return {**hidden, "data_message": failed}, None
    done = " ".join((*imported.actions, f"{counted(imported.rows, 'row')}."))
    return {**hidden, "data_message": render.notice(done)}, imported.path
