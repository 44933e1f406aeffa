"""Datasets: taken in from elsewhere, checked line by line, repaired, mapped, mixed into what a run is trained on.

Plain JSON, line by line: what is accepted here is what the training program reads. Never changes a file; whatever is
done to one writes another.
"""

from core.dataset.check.check import Examination, check_file, examine
from core.dataset.check.in_child import check_in_child
from core.dataset.check.scanner import Wish
from core.dataset.formats import USUAL_STAGES
from core.dataset.intake.importer import (
    TABLES,
    Imported,
    ImportLimits,
    ImportProgress,
    import_dataset,
    is_hub_dataset,
    must_be_imported,
)
from core.dataset.report import DatasetReport, RowProblem, counted
from core.dataset.rewrite.files import Written
from core.dataset.rewrite.mapping import map_columns, match_columns, suggest_mapping
from core.dataset.rewrite.mix import Composed, Share, compose, parse_mix, require_one_form
from core.dataset.rewrite.repair import (
    REPAIRS,
    as_lines,
    drop_bad_rows,
    drop_duplicates,
    drop_rows,
    repair,
    write_lines,
)
from core.dataset.token_lengths import Lengths, RowLengths, refusals

__all__ = [
    "REPAIRS",
    "TABLES",
    "USUAL_STAGES",
    "Composed",
    "DatasetReport",
    "Examination",
    "ImportLimits",
    "ImportProgress",
    "Imported",
    "Lengths",
    "RowLengths",
    "RowProblem",
    "Share",
    "Wish",
    "Written",
    "as_lines",
    "check_file",
    "check_in_child",
    "compose",
    "counted",
    "drop_bad_rows",
    "drop_duplicates",
    "drop_rows",
    "examine",
    "import_dataset",
    "is_hub_dataset",
    "map_columns",
    "match_columns",
    "must_be_imported",
    "parse_mix",
    "refusals",
    "repair",
    "require_one_form",
    "suggest_mapping",
    "write_lines",
]
