"""Exports: take the result of a run to other programs.

Plans, sizes, Modelfiles, model cards and records of what was exported. core/workers/export does the
work, in another process.

    runs/<id>/exports/<name>/  export.json      what it is, hashes of its files, how it was verified
                               ...              its files
                      .<name>/                  the same while it is made: request, status, log
"""

from core.after_training.export.forms import FORMS
from core.after_training.export.records import (
    Export,
    ExportStatus,
    list_exports,
)

__all__ = [
    "FORMS",
    "Export",
    "ExportStatus",
    "card",
    "forms",
    "launch",
    "list_exports",
    "loss_plot",
    "ollama",
    "origin",
    "plan",
    "records",
    "sentences",
    "serve",
    "tools",
]
