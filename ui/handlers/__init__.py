"""What happens on each event: read the form, call core, return {name of a component: what it shows now}.

Names are JobSpec fields for the form and the page's own names for the rest; the page joins them to components. Values
are strings, numbers, figures and updates of these only. A handler never trains and never waits for a training.
"""

from core.runs import Home
from ui.handlers.columns import COLUMN_BOXES, ColumnHandlers
from ui.handlers.data import DataHandlers
from ui.handlers.exact import Checks, ExactHandlers
from ui.handlers.intake import Takings
from ui.handlers.job import SHOWN_FIXES, JobHandlers
from ui.handlers.preview import PreviewHandlers, Previews
from ui.handlers.runs import RunHandlers
from ui.handlers.shown import Shown

__all__ = ["COLUMN_BOXES", "SHOWN_FIXES", "Handlers", "Shown"]


class Handlers(
    JobHandlers, DataHandlers, ColumnHandlers, PreviewHandlers, ExactHandlers, RunHandlers
):
    """Every event of the page, over one home folder."""

    def __init__(self, home: Home):
        self.home = home
        self.checks = Checks(home)
        self.previews = Previews(home)
        self.takings = Takings(home)
