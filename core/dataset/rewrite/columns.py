"""Mapping of columns: the file's names become ours. Values stay as they are."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from core.dataset.files import Written, writing
from core.dataset.reading.json_faults import BYTE_ORDER_MARK
from core.dataset.reading.lines import parse_line
from core.dataset.reading.text_lines import first_rows, reading
from core.dataset.report import MAX_COLUMNS, counted
from core.job import DatasetError, Problem
from core.training.contract.row_columns import holds_something
from core.training.contract.row_formats import NOT_MAPPED, ROW_FORMATS, ROW_FORMATS_BY_ID
from core.training.contract.row_reader import RIGHT_ANSWERS

MAX_NAMED = 20
MAX_COUNTED = 1000
"""Names of columns that are remembered while a file is written."""
USUAL_COLUMNS = tuple(dict.fromkeys(name for each in ROW_FORMATS for name in each.columns))
OUR_COLUMNS = frozenset(
    (
        *RIGHT_ANSWERS,
        *(name for each in ROW_FORMATS for names in each.required.values() for name in names),
        *(name for each in ROW_FORMATS for names in each.optional.values() for name in names),
    )
)
"""Names of columns that are read in some row format."""
SYNTAX = 'write question=COLUMN,answer=COLUMN, or a JSON object: {"question": "COLUMN", ...}'


def parse_mapping(text: str) -> dict[str, str]:
    """Return {our column: the file's} of `question=COLUMN,answer=COLUMN` or of a JSON object.

    A comma without an = after it is part of a name. Raises DatasetError.
    """
    mapping = _parse_object(text) if text.lstrip().startswith("{") else _parse_pairs(text)
    for ours, theirs in mapping.items():
        if ours in OUR_COLUMNS:
            continue
        fix = f"use {', '.join(USUAL_COLUMNS)}, system, context or history"
        if theirs in OUR_COLUMNS:
            fix = f"write {theirs}={ours}: our name first, then the file's"
        raise _bad_mapping(f"{ours!r} is no column that Tailor reads", fix)
    return mapping


def map_columns(
    path: Path,
    target: Path,
    mapping: Mapping[str, str],
    row_format: str = "",
    *,
    keeps_bad_lines: bool = False,
) -> Written:
    """Write the mapped columns of each row under our names, their values unchanged.

    `mapping` goes from our column to the file's; all others stay, under names that are not read,
    so that a check names them. `row_format` is an id in ROW_FORMATS whose columns must all be
    mapped. Lines without a row are left out, or stay as they are. Raises DatasetError if one is
    not, or if the file has no such column; OSError.
    """
    _require_all_of(row_format, mapping)
    _require_columns(path, mapping)
    rows = num_bad = 0
    others = Counter[str]()
    with reading(path) as source, writing(target) as out:
        for _number, line in source:
            row, fault = parse_line(line)
            if row is not None:
                rows += 1
                out.write(_mapped(line, mapping, others) + b"\n")
            elif keeps_bad_lines:
                out.write(line + b"\n")
            elif fault:
                num_bad += 1
    actions = [_named_columns(mapping, others)]
    if num_bad:
        actions.append(f"{counted(num_bad, 'line')} without a row left out.")
    return Written(target, rows, tuple(actions))


def _mapped(line: bytes, mapping: Mapping[str, str], others: Counter[str]) -> bytes:
    """Return a row with its mapped columns; count the names of the others."""
    # `json` keeps large numbers as they are.
    row = json.loads(line.removeprefix(BYTE_ORDER_MARK))
    mapped = {ours: row[name] for ours, name in mapping.items() if name in row}
    others_of_row = [name for name in row if name not in mapping.values()]
    if len(others) < MAX_COUNTED:
        others.update(others_of_row)
    for name in others_of_row:
        if len(mapped) < MAX_COLUMNS and holds_something(row[name]):
            is_ours = name in OUR_COLUMNS or name in mapped
            mapped.setdefault(f"{name}{NOT_MAPPED}" if is_ours else name, row[name])
    return json.dumps(mapped, ensure_ascii=False).encode()


def _named_columns(mapping: Mapping[str, str], others: Mapping[str, int]) -> str:
    """Return what became of the columns of a file."""
    names = ", ".join(f"{theirs} became {ours}" for ours, theirs in mapping.items())
    if not others:
        return f"Columns: {names}."
    not_mapped = ", ".join(list(others)[:MAX_NAMED])
    if len(others) > MAX_NAMED:
        not_mapped += f" and {len(others) - MAX_NAMED:,} more"
    return f"Columns: {names}; not mapped: {not_mapped}."


def _require_all_of(row_format: str, mapping: Mapping[str, str]) -> None:
    """Raise DatasetError if a column of a row format is not mapped."""
    needed = ROW_FORMATS_BY_ID[row_format].columns if row_format else ()
    missing = [column for column in needed if column not in mapping]
    if missing:
        message = f"{row_format} rows need {' and '.join(missing)}"
        fix = f"say which column of the file is the {missing[0]}"
        raise DatasetError(Problem("file", message, fix))


def _require_columns(path: Path, mapping: Mapping[str, str]) -> None:
    """Raise DatasetError if none of a file's first rows has one of the mapped columns."""
    rows, _is_all = first_rows(path)
    names = dict.fromkeys(name for row in rows for name in row)
    for theirs in mapping.values():
        if rows and theirs not in names:
            shown = ", ".join(list(names)[:MAX_NAMED])
            raise _bad_mapping(f"the file has no column {theirs!r}", f"it has {shown}")


def _parse_object(text: str) -> dict[str, str]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _bad_mapping(f"is not JSON: {error}", SYNTAX) from None
    if not found or not all(isinstance(each, str) for each in found.values()):
        raise _bad_mapping("is not an object of names", SYNTAX)
    return dict(found)


def _parse_pairs(text: str) -> dict[str, str]:
    pairs: list[list[str]] = []
    for part in text.split(","):
        ours, equals, theirs = part.partition("=")
        if equals:
            pairs.append([ours.strip(), theirs])
        elif pairs:
            pairs[-1][1] += f",{part}"
        else:
            raise _bad_mapping(f"{part.strip()!r} names no column", SYNTAX)
    mapping = {ours: theirs.strip() for ours, theirs in pairs}
    if len(mapping) < len(pairs):
        raise _bad_mapping("names one of our columns twice", SYNTAX)
    for ours, theirs in mapping.items():
        if not theirs:
            raise _bad_mapping(f"{ours}= names no column", SYNTAX)
    return mapping


def _bad_mapping(problem: str, fix: str) -> DatasetError:
    return DatasetError(Problem("columns", problem, fix))
