"""Columns under other names: which of theirs stand for which of ours, suggested, and written. Knows names, not values.

A mapping goes from our column to theirs: {"prompt": "Frage", "completion": "Antwort"}.
"""

import json
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType

from core.dataset.check.diagnosis import BYTE_ORDER_MARK
from core.dataset.check.lines import parse
from core.dataset.report import counted, file_problem
from core.dataset.rewrite.files import Written, reading, writing
from core.job import DatasetError
from core.training.contract.row_columns import Row
from core.training.contract.row_formats import (
    ROW_FORMATS,
    ROW_FORMATS_BY_ID,
    RowFormat,
    accepts,
)

QUESTIONS = (
    "question",
    "query",
    "prompt",
    "instruction",
    "input",
    "problem",
    "request",
    "user",
    "human",
    "task",
)
ANSWERS = (
    "answer",
    "response",
    "completion",
    "output",
    "reply",
    "solution",
    "assistant",
    "target",
    "result",
    "gpt",
)
ALIASES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "messages": ("conversation", "chat", "dialogue", "dialog"),
        "prompt": QUESTIONS,
        "completion": ANSWERS,
        "question": QUESTIONS,
        "answer": ANSWERS,
        "chosen": ("accepted", "preferred", "winner", "better", "good", "positive"),
        "rejected": ("dispreferred", "loser", "worse", "bad", "negative"),
        "label": ("desirable", "preference", "thumbsup", "isgood"),
        "text": ("content", "body", "document", "passage", "article", "story", "code"),
    }
)
"""Our column -> what others call it, in lower case, the likelier first."""
USUAL_KINDS = (
    "messages",
    "preference",
    "preference without prompt",
    "unpaired preference",
    "question and answer",
)
"""Kinds that names are matched to, in order; then text and prompts alone."""
LIKENESS = 0.8
"""How alike two names must be, from 0 to 1: `anwser` passes for `answer`, `prompts` for `prompt`."""


def mapped(row: Row, mapping: Mapping[str, str]) -> Row:
    """The row under our names; columns that are not mapped are left out."""
    return {ours: row[theirs] for ours, theirs in mapping.items() if theirs in row}


def map_columns(path: Path, target: Path, mapping: Mapping[str, str], kind: str = "") -> Written:
    """Writes the mapped columns of each row under our names, their values as they are.

    `kind` is an id in ROW_FORMATS whose columns must all be mapped. Raises DatasetError if one is not, OSError.
    """
    if (
        missing := [column for column in ROW_FORMATS_BY_ID[kind].columns if column not in mapping]
        if kind
        else []
    ):
        fix = f"say which column of the file is the {missing[0]}"
        raise DatasetError(
            file_problem("not_mapped", f"{kind} rows need {' and '.join(missing)}", fix).for_user()
        )
    rows = left_out = 0
    with reading(path) as source, writing(target) as out:
        for _number, line in source:
            row, fault = parse(line)
            if row is not None:  # read once more, by the parser that keeps large numbers
                whole = json.loads(line.removeprefix(BYTE_ORDER_MARK))
                out.write(json.dumps(mapped(whole, mapping), ensure_ascii=False).encode() + b"\n")
            rows += row is not None
            left_out += fault is not None
    names = ", ".join(f"{theirs} became {ours}" for ours, theirs in mapping.items())
    lost = (f"{counted(left_out, 'line')} without a row left out.",) if left_out else ()
    return Written(target, rows, (f"Columns: {names}; all others were left out.", *lost))


def suggest_mapping(names: Iterable[str], stage: str) -> dict[str, str]:
    """The mapping that the names of a file's columns speak for; empty if they speak for none."""
    by_name = _by_name(names)
    usual = [ROW_FORMATS_BY_ID[id] for id in USUAL_KINDS]
    kinds = [
        *usual,
        *(kind for kind in ROW_FORMATS if len(kind.columns) == 1 and kind not in usual),
    ]
    found = (
        (kind, match_columns(kind, by_name.values())) for kind in kinds if accepts(stage, kind)
    )
    pair = ROW_FORMATS_BY_ID["question and answer"]
    any_two = dict(zip(pair.columns, by_name.values(), strict=False)) if len(by_name) == 2 else {}
    whole = (mapping for kind, mapping in found if len(mapping) == len(kind.columns))
    return next(whole, any_two if accepts(stage, pair) else {})


def match_columns(kind: RowFormat, names: Iterable[str]) -> dict[str, str]:
    """{column of the kind: column of the file}, for those that have a counterpart by their name."""
    free, mapping = _by_name(names), dict[str, str]()
    for column in kind.columns:
        wanted = (column, *ALIASES.get(column, ()))
        exact = next((name for name in wanted if name in free), None)
        close = (get_close_matches(name, free, 1, LIKENESS) for name in wanted)
        name = exact or next((found[0] for found in close if found), None)
        if name is not None:
            mapping[column] = free.pop(name)
    return mapping


def _by_name(names: Iterable[str]) -> dict[str, str]:
    """The names of columns, by what is left of them without capitals and signs."""
    return {re.sub(r"[^a-z0-9]", "", name.lower()) or name: name for name in names}
