"""Write a file again under other column names. Changes no value."""

import json
from collections.abc import Mapping
from pathlib import Path

from core.dataset.files import Written, writing
from core.dataset.reading.json_faults import BYTE_ORDER_MARK
from core.dataset.reading.lines import parse_line
from core.dataset.reading.text_lines import reading
from core.dataset.report import counted
from core.job import DatasetError, Problem
from core.training.contract.row_formats import ROW_FORMATS_BY_ID


def map_columns(
    path: Path, target: Path, mapping: Mapping[str, str], row_format: str = ""
) -> Written:
    """Write the mapped columns of each row under our names; all other columns are left out.

    `mapping` goes from our column to the file's. `row_format` is an id in ROW_FORMATS whose columns
    must all be mapped. Raises DatasetError if one is not, OSError.
    """
    if row_format:
        _require_columns(mapping, row_format)
    rows = num_bad = 0
    with reading(path) as source, writing(target) as out:
        for _number, line in source:
            row, fault = parse_line(line)
            if row is not None:
                rows += 1
                # Parsed again with `json`, which keeps large numbers as they are.
                whole = json.loads(line.removeprefix(BYTE_ORDER_MARK))
                mapped = {ours: whole[name] for ours, name in mapping.items() if name in whole}
                out.write(json.dumps(mapped, ensure_ascii=False).encode() + b"\n")
            elif fault:
                num_bad += 1
    names = ", ".join(f"{theirs} became {ours}" for ours, theirs in mapping.items())
    actions = [f"Columns: {names}; all others were left out."]
    if num_bad:
        actions.append(f"{counted(num_bad, 'line')} without a row left out.")
    return Written(target, rows, tuple(actions))


def _require_columns(mapping: Mapping[str, str], row_format: str) -> None:
    columns = ROW_FORMATS_BY_ID[row_format].columns
    missing = [column for column in columns if column not in mapping]
    if missing:
        message = f"{row_format} rows need {' and '.join(missing)}"
        fix = f"say which column of the file is the {missing[0]}"
        raise DatasetError(Problem("file", message, fix))
