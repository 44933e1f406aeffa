"""What to change so that a job fits its card, how to use the room where it does, and what fits where.

Proposes changes and estimates each; never decides. Pure functions of their arguments, cached.
"""

from core.fit.batch import Cell, largest_batch, what_fits
from core.fit.case import Case, Change, Harm, estimate_on
from core.fit.remedies import IDEAS, REMEDIES
from core.fit.suggest import Fix, suggest_fixes, use_the_room

__all__ = [
    "IDEAS",
    "REMEDIES",
    "Case",
    "Cell",
    "Change",
    "Fix",
    "Harm",
    "estimate_on",
    "largest_batch",
    "suggest_fixes",
    "use_the_room",
    "what_fits",
]
