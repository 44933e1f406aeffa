"""Row formats of whole files: the one that most rows have. Never looks at a value."""

from collections import Counter
from collections.abc import Mapping, Sequence

from core.training.contract.row_formats import RowFormat, find_row_format
from core.training.contract.stages import STAGES

USUAL_STAGES: Mapping[str, str] = {
    dataset_type: stage.id for stage in STAGES.values() for dataset_type in stage.usual_for
}
"""Dataset type -> the stage that people most likely want it for."""


def detect_format(
    rows_columns: Sequence[tuple[str, ...]], stage: str, *, is_all: bool
) -> tuple[RowFormat | None, str]:
    """Return the format of most rows of a sample, and the evidence in words.

    `is_all` says that the file has no further rows.
    """
    votes = Counter(find_row_format(columns, stage) for columns in rows_columns)
    if not votes:
        return None, ""
    # A known format wins over no format, however few rows have it.
    row_format, num_rows = max(votes.items(), key=lambda vote: (vote[0] is not None, vote[1]))
    sample = f"the first {len(rows_columns):,} rows"
    if is_all:
        sample = f"{len(rows_columns):,} rows"
    if row_format is None:
        return None, f"none of {sample} has the columns of a known format"
    share = f"{num_rows:,} of {sample}"
    if num_rows == len(rows_columns):
        share = f"all {sample}" if is_all else f"all of {sample}"
    if is_all and num_rows == len(rows_columns) == 1:
        share = "the only row"
    return row_format, f"{' and '.join(row_format.columns)} in {share}"
