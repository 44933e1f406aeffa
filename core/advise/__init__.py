"""Advice on a job: what makes it fit its card, what makes it faster, what cures a failure.

Proposes changes and estimates them. Pure functions of their arguments, cached.
"""

from core.advise import batch
from core.advise.batch import largest_batch, what_fits
from core.advise.case import Case, Harm
from core.advise.choices import Choice, Plan, plan
from core.advise.failures import Advice, advice_after
from core.advise.reasons import PLANNED_FIELDS
from core.advise.suggest import Fix, suggest_fixes
from core.advise.together import Sharing, together

__all__ = [
    "PLANNED_FIELDS",
    "Advice",
    "Case",
    "Choice",
    "Fix",
    "Harm",
    "Plan",
    "Sharing",
    "advice_after",
    "batch",
    "largest_batch",
    "plan",
    "suggest_fixes",
    "together",
    "what_fits",
]
