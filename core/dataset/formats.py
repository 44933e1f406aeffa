"""Row formats of whole files: detected, or suggested by the names of columns. Looks at no value.

A mapping goes from our column to the file's: {"prompt": "Frage", "completion": "Antwort"}.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from types import MappingProxyType

from core.training.contract.row_formats import (
    ROW_FORMATS_BY_ID,
    RowFormat,
    accepts,
    find_row_format,
)
from core.training.contract.stages import STAGES

USUAL_STAGES: Mapping[str, str] = {
    dataset_type: stage.id for stage in STAGES.values() for dataset_type in stage.usual_for
}
"""Dataset type -> the stage that people most likely want it for."""
QUESTIONS = "question query prompt instruction input problem request user human task"
ANSWERS = "answer response completion output reply solution assistant target result gpt"
ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "messages": "conversation chat dialogue dialog",
        "prompt": QUESTIONS,
        "completion": ANSWERS,
        "question": QUESTIONS,
        "answer": ANSWERS,
        "chosen": "accepted preferred winner better good positive",
        "rejected": "dispreferred loser worse bad negative",
        "label": "desirable preference thumbsup isgood",
        "text": "content body document passage article story code",
    }
)
"""Our column -> other names for it in lower case, the likelier first."""
SUGGESTED_FORMATS = (
    "messages",
    "preference",
    "preference without prompt",
    "unpaired preference",
    "question and answer",
    "ShareGPT",
    "text",
    "prompt only",
)
"""Row formats that names are matched with, in this order."""
MIN_LIKENESS = 0.8
"""Least likeness of two names, from 0 to 1: `anwser` passes for `answer`."""


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
    total = len(rows_columns)
    sample = f"{total:,} rows" if is_all else f"the first {total:,} rows"
    if row_format is None:
        return None, f"none of {sample} has the columns of a known format"
    share = f"{num_rows:,} of {sample}"
    if num_rows == total:
        share = f"all {sample}" if is_all else f"all of {sample}"
    if is_all and num_rows == total == 1:
        share = "the only row"
    return row_format, f"{' and '.join(row_format.columns)} in {share}"


def suggest_mapping(names: Iterable[str], stage: str) -> dict[str, str]:
    """Return the mapping that the names of a file's columns suggest; empty if they suggest none."""
    by_name = _by_plain_name(names)
    for id in SUGGESTED_FORMATS:
        row_format = ROW_FORMATS_BY_ID[id]
        mapping = match_columns(row_format, by_name.values()) if accepts(stage, row_format) else {}
        if mapping and len(mapping) == len(row_format.columns):
            return mapping
    pair = ROW_FORMATS_BY_ID["question and answer"]
    if len(by_name) == 2 and accepts(stage, pair):  # any two columns
        return dict(zip(pair.columns, by_name.values(), strict=True))
    return {}


def match_columns(row_format: RowFormat, names: Iterable[str]) -> dict[str, str]:
    """Return {column of the format: column of the file} for those that match by their name."""
    free, mapping = _by_plain_name(names), dict[str, str]()
    for column in row_format.columns:
        name = _best_match([column, *ALIASES.get(column, "").split()], free)
        if name is not None:
            mapping[column] = free.pop(name)
    return mapping


def _best_match(wanted: Sequence[str], free: Mapping[str, str]) -> str | None:
    for name in wanted:
        if name in free:
            return name
    for name in wanted:
        if close := get_close_matches(name, free, 1, MIN_LIKENESS):
            return close[0]
    return None


def _by_plain_name(names: Iterable[str]) -> dict[str, str]:
    """Return column names by what is left of them without capitals and punctuation."""
    return {re.sub(r"[^a-z0-9]", "", name.lower()) or name: name for name in names}
