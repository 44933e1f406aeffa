"""Event handlers: read the form, call core, return what each component shows now.

Keys of the form are JobSpec fields; other names are the page's own. Values are strings, numbers,
figures and updates of these. A handler never trains and never waits for a training.
"""

from collections.abc import Sequence
from pathlib import Path

from core.models import PRESETS_DIR
from core.runs import Home
from ui.events import Updates
from ui.handlers import columns, kept_form, panels
from ui.handlers.answer import FIRST_STATE, NO_ANSWER, Answer
from ui.handlers.checks import CheckHandlers
from ui.handlers.comparing import FIRST_SWEEP, CompareHandlers
from ui.handlers.comparisons import ComparisonHandlers
from ui.handlers.conversations import Conversations
from ui.handlers.data import DataHandlers
from ui.handlers.estimate import FIX_BUTTONS, EstimateHandlers, Suggestions, Undo
from ui.handlers.export_activities import ExportActivities
from ui.handlers.exports import ExportHandlers
from ui.handlers.imports import Imports
from ui.handlers.placing import QUEUE_EACH, PlacingHandlers
from ui.handlers.results import ResultHandlers
from ui.handlers.resuming import ResumeHandlers
from ui.handlers.rows import Previews, RowHandlers
from ui.handlers.runs import RunHandlers
from ui.handlers.start import show_start
from ui.handlers.trace import TraceHandlers, TraceTasks
from ui.handlers.trying import TryHandlers

__all__ = [
    "FIRST_STATE",
    "FIRST_SWEEP",
    "FIX_BUTTONS",
    "NO_ANSWER",
    "QUEUE_EACH",
    "Handlers",
    "Suggestions",
    "Undo",
    "columns",
    "kept_form",
    "panels",
]


class Handlers:
    """Every event of the page, over one home folder."""

    def __init__(self, home: Home, data_folders: Sequence[Path] = ()) -> None:
        self.home = home
        self.guest_folders = (home.path.resolve(), PRESETS_DIR, *data_folders)
        """Folders that those may read from who came in by the token."""
        self.previews = Previews(home)
        self.placing = PlacingHandlers()
        self.data = DataHandlers(home, Imports(home))
        self.rows = RowHandlers(self.previews)
        self.trace = TraceHandlers(home, self.previews, TraceTasks(home))
        self.estimate = EstimateHandlers(home, self.previews, self.trace)
        self.checks = CheckHandlers(home)
        export_activities = ExportActivities()
        self.runs = RunHandlers(home, self.previews, self.checks, export_activities, self.placing)
        self.resuming = ResumeHandlers(home, self.placing, self.runs.on_view)
        self.results = ResultHandlers(home, self.runs.on_view)
        self.comparisons = ComparisonHandlers(home, self.runs.on_view)
        choose = self.comparisons.on_choose_comparison
        self.comparing = CompareHandlers(home, self.previews, choose)
        self.conversations = Conversations(home)
        self.tries = TryHandlers(home, self.conversations)
        self.exports = ExportHandlers(home, export_activities)

    def on_start_facts(self, answer: Answer, where: str = "", **place: object) -> Updates:
        """Say what the measured rows tell against a start, and the command that does the same."""
        command = self.placing.on_box(answer, where, **place)
        return {**show_start(answer, self.previews), **command}

    def close(self) -> None:
        """End the child processes."""
        self.previews.close()
        self.conversations.close()
