"""What is in a dataset file: the kind of its rows, every problem by line, and the ways to repair it.

Plain JSON, line by line: what is accepted here is what the training program reads. Never changes a file; repairs
write a new one.
"""

from core.dataset.check import Examination, check, examine
from core.dataset.child import Progress, check_in_child
from core.dataset.repair import (
    REPAIRS,
    DatasetError,
    Written,
    drop_bad_rows,
    drop_duplicates,
    drop_rows,
    rename_columns,
    repair,
    write_lines,
)
from core.dataset.report import DatasetReport, RowProblem
from core.dataset.types import DATASET_TYPES, KINDS, DatasetType, kind_of
from core.dataset.walk import Wish

__all__ = [
    "DATASET_TYPES",
    "KINDS",
    "REPAIRS",
    "DatasetError",
    "DatasetReport",
    "DatasetType",
    "Examination",
    "Progress",
    "RowProblem",
    "Wish",
    "Written",
    "check",
    "check_in_child",
    "drop_bad_rows",
    "drop_duplicates",
    "drop_rows",
    "examine",
    "kind_of",
    "rename_columns",
    "repair",
    "write_lines",
]
