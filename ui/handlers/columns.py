"""Column mapping: the user says which row format a file has and which column is which."""

from collections.abc import Mapping, Sequence

import gradio as gr

from core.dataset import DatasetReport
from core.dataset.rewrite import in_child
from core.dataset.suggestions import match_columns
from core.job import DatasetError
from core.resolve import dataset_path
from core.runs import Home
from core.training.contract.row_formats import ROW_FORMATS, ROW_FORMATS_BY_ID, RowFormat, accepts
from ui import render
from ui.events import Updates
from ui.handlers.data import use_file

MAX_COLUMNS = max(len(each.columns) + len(each.optional) for each in ROW_FORMATS)
COLUMN_BOXES = tuple(f"column_{place}" for place in range(MAX_COLUMNS))
"""Names of the menus: one for each column that a row format may have."""
MOST_LIKELY = "question and answer"
NOT_CHOSEN, NO_COLUMN = "(choose)", "(none)"


def on_row_format(row_format: str, column_names: Sequence[str]) -> Updates:
    """Ask for the columns of another row format. Known columns are filled in."""
    if row_format not in ROW_FORMATS_BY_ID:
        return {}
    chosen = ROW_FORMATS_BY_ID[row_format]
    return _boxes(chosen, column_names, match_columns(chosen, column_names))


def on_map_columns(
    home: Home, dataset: str, stage: str, row_format: str, **boxes: str | None
) -> Updates:
    """Write the data with our names for its columns to a new file and use that."""
    if row_format not in ROW_FORMATS_BY_ID:
        return {}
    source = dataset_path(dataset, stage)
    columns: dict[str, str] = {}
    for ours, box in zip(_columns(ROW_FORMATS_BY_ID[row_format]), COLUMN_BOXES, strict=False):
        if theirs := boxes.get(box):
            columns[ours] = theirs
    try:
        target = home.new_upload_folder() / f"{source.stem}-named.jsonl"
        names = {"mapping": columns, "row_format": row_format}
        written = in_child.rewrite("map_columns", source, target, **names)
    except (DatasetError, OSError) as error:
        return {"data_message": render.notice(f"Nothing was changed. {error}", "bad")}
    said = render.notice(" ".join(written.actions))
    return {**use_file(home, written.path), "data_message": said}


def show_columns(values: Mapping[str, object], report: DatasetReport | None) -> Updates:
    """Offer the mapping for new data. It opens by itself if the format of the rows is not known."""
    if report is None or not report.found_columns or values["dataset"] == "demo":
        return {"columns_panel": gr.update(visible=False)}
    accepted = [each for each in ROW_FORMATS if accepts(str(values["stage"]), each)]
    likely = _most_likely(accepted, report)
    names = report.found_columns
    is_open = not report.dataset_type or bool(report.needs_consent)
    mapping = report.suggestion or match_columns(likely, names)
    return {
        "columns_panel": gr.update(visible=True, open=is_open),
        "row_format": gr.update(choices=[each.id for each in accepted], value=likely.id),
        "column_names": list(names),
        **_boxes(likely, names, mapping),
    }


def _most_likely(accepted: Sequence[RowFormat], report: DatasetReport) -> RowFormat:
    """Return the detected format, else the suggested one, else the usual one, else any."""
    for each in accepted:
        if each.id == report.row_format:
            return each
    for each in accepted:
        if set(each.columns) <= set(report.suggestion):
            return each
    usual = ROW_FORMATS_BY_ID[MOST_LIKELY]
    return usual if usual in accepted else accepted[0]


def _columns(row_format: RowFormat) -> tuple[str, ...]:
    return (*row_format.columns, *row_format.optional)


def _boxes(row_format: RowFormat, names: Sequence[str], mapping: Mapping[str, str]) -> Updates:
    """Show one menu of the file's columns for each column of the format."""
    updates: Updates = {
        box: gr.update(visible=False, choices=[], value=None) for box in COLUMN_BOXES
    }
    options = [(name, name) for name in names]
    for box, ours in zip(COLUMN_BOXES, _columns(row_format), strict=False):
        if ours in row_format.columns:
            known = mapping.get(ours, "")
            choices = [(NOT_CHOSEN, ""), *options]
            updates[box] = gr.update(visible=True, label=ours, choices=choices, value=known)
        elif len(names) > len(row_format.columns):
            # Only a file with more columns than are required can have an optional one.
            known = mapping.get(ours) or (ours if ours in names else "")
            choices = [(NO_COLUMN, ""), *options]
            label = f"{ours} (optional)"
            updates[box] = gr.update(visible=True, label=label, choices=choices, value=known)
    return updates
