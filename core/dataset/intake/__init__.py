"""Import CSV, Parquet, JSON arrays and Hub datasets as JSON lines."""

from core.dataset.intake.convert import Sources, write_json_lines
from core.dataset.intake.importer import (
    TABLES,
    Imported,
    ImportLimits,
    ImportProgress,
    import_dataset,
    is_hub_dataset,
    must_be_imported,
)
from core.dataset.intake.tables import csv_lines
from core.dataset.reading.plain_text import SPLITS, TEXT_SUFFIXES, Split

__all__ = [
    "SPLITS",
    "TABLES",
    "TEXT_SUFFIXES",
    "ImportLimits",
    "ImportProgress",
    "Imported",
    "Sources",
    "Split",
    "csv_lines",
    "import_dataset",
    "is_hub_dataset",
    "must_be_imported",
    "write_json_lines",
]
