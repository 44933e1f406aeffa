"""Checks of exports: what a conversion cost, and over which base it is better merged."""

from core.after_training.export_checks.both import (
    BothBases,
    Numbers,
    measure_both,
    measured_both,
    require_both,
)
from core.after_training.export_checks.checking import (
    ExportCheck,
    can_be_checked,
    check_export,
    find_export,
    find_exported,
    names_export,
)

__all__ = [
    "BothBases",
    "ExportCheck",
    "Numbers",
    "can_be_checked",
    "check_export",
    "find_export",
    "find_exported",
    "measure_both",
    "measured_both",
    "names_export",
    "require_both",
    "sentences",
]
