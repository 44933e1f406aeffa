"""Write a dataset again: repaired, renamed, mixed. Never changes a file in place."""

from core.dataset.files import Written
from core.dataset.rewrite.columns import map_columns, parse_mapping
from core.dataset.rewrite.mix import Composed, Selection, compose, parse_mix
from core.dataset.rewrite.repair import (
    REPAIRS,
    as_lines,
    drop_bad_rows,
    keep_wanted,
    repair,
    split_text,
)

__all__ = [
    "REPAIRS",
    "Composed",
    "Selection",
    "Written",
    "as_lines",
    "compose",
    "drop_bad_rows",
    "in_child",
    "keep_wanted",
    "map_columns",
    "parse_mapping",
    "parse_mix",
    "repair",
    "split_text",
]
