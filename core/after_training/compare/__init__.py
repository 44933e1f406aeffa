"""Comparisons: what a card can train, and the same job trained in several ways, with a report.

Creates runs, queues them and reads their folders. Never trains.

    on_card    base models that a card can train
    study      one job, and what varies between its runs
    variants   those runs before they exist, estimated
    search     ranges of settings, for runs that an optimizer chooses
    optimizer  what such a search tries next
    creation   their runs, created within the budget
    on_cluster send its runs to a cluster together
    searching  the runs of a search, created and pruned
    record     the file that names the runs of a comparison
    conduct    create, queue, stop and continue them
    checking   check those that have finished
    keeper     carry on every open comparison of a home, and report
    report/    sentences, tables and plots of what came out
"""

from core.after_training.compare import (
    checking,
    conduct,
    on_card,
    optimizer,
    record,
    search,
    study,
    variants,
)
from core.after_training.compare.record import Comparison, Trial
from core.after_training.compare.study import Study
from core.after_training.compare.variants import Variant, plan_variants

__all__ = [
    "Comparison",
    "Study",
    "Trial",
    "Variant",
    "checking",
    "conduct",
    "keeper",
    "on_card",
    "optimizer",
    "plan_variants",
    "record",
    "report",
    "search",
    "study",
    "variants",
]
