"""What to change in a job: make it fit its card, run it faster, plan all that only trades memory for speed.

Proposes changes and estimates each. Pure functions of their arguments, cached.
"""

from core.advise.batch import Cell, largest_batch, what_fits
from core.advise.case import Case, Change, Harm, estimate_on
from core.advise.changes import IDEAS, REMEDIES
from core.advise.choices import PLANNED_FIELDS, Choice, Plan, plan
from core.advise.suggest import Fix, suggest_fixes, use_the_room

__all__ = [
    "IDEAS",
    "PLANNED_FIELDS",
    "REMEDIES",
    "Case",
    "Cell",
    "Change",
    "Choice",
    "Fix",
    "Harm",
    "Plan",
    "estimate_on",
    "largest_batch",
    "plan",
    "suggest_fixes",
    "use_the_room",
    "what_fits",
]
