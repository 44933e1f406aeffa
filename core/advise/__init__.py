"""Advice on a job: what makes it fit its card, what makes it faster, what cures a failure.

Proposes changes and estimates them. Pure functions of their arguments, cached.
"""

from core.advise.batch import USUAL_GPUS, Cell, largest_batch, what_fits
from core.advise.case import Case, Harm
from core.advise.choices import Choice, Plan, plan
from core.advise.failures import Advice, advice_after
from core.advise.reasons import PLANNED_FIELDS
from core.advise.suggest import Fix, suggest_fixes
from core.advise.together import together

__all__ = [
    "PLANNED_FIELDS",
    "USUAL_GPUS",
    "Advice",
    "Case",
    "Cell",
    "Choice",
    "Fix",
    "Harm",
    "Plan",
    "advice_after",
    "largest_batch",
    "plan",
    "suggest_fixes",
    "together",
    "what_fits",
]
