"""What only trades memory for speed, chosen for a job: "Fastest that fits" and "Smallest memory", with the reasons.

`plan` is the door: a pure function. Chooses nothing that a person has set, and never what is to be learnt.
"""

from core.plan.choices import PLANNED_FIELDS, Choice, Plan, plan

__all__ = ["PLANNED_FIELDS", "Choice", "Plan", "plan"]
