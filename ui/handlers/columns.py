"""What happens to columns under other names: a person says what the rows are, and which column is which."""

from collections.abc import Mapping, Sequence

import gradio as gr

from core.dataset import DatasetReport, map_columns, match_columns
from core.job import DatasetError
from core.resolve import dataset_path
from core.runs import Home, new_folder
from core.training.contract.row_formats import ROW_FORMATS, ROW_FORMATS_BY_ID, accepts
from ui import render
from ui.handlers.menu import taken_up
from ui.handlers.shown import Shown

COLUMN_BOXES = tuple(
    f"column_{place}"
    for place in range(max(len(kind.columns + kind.optional_columns) for kind in ROW_FORMATS))
)
"""Names of the boxes, one for each column that the rows of some kind may have."""
MOST_LIKELY = "question and answer"


class ColumnHandlers:
    """The events of naming columns, over one home folder."""

    home: Home

    def on_kind(self, kind: str, names: Sequence[str]) -> Shown:
        """The rows are said to be of that kind: its columns are asked for, known ones filled in."""
        return _boxes(kind, names, match_columns(ROW_FORMATS_BY_ID[kind], names))

    def on_map_columns(self, dataset: str, stage: str, kind: str, **boxes: str | None) -> Shown:
        """Writes the data again under our names for its columns, and takes the new file as the data."""
        source = dataset_path(dataset, stage)
        pairs = {
            ours: boxes.get(box) for ours, box in zip(_columns(kind), COLUMN_BOXES, strict=False)
        }
        try:
            target = new_folder(self.home) / f"{source.stem}-named.jsonl"
            written = map_columns(
                source, target, {ours: theirs for ours, theirs in pairs.items() if theirs}, kind
            )
        except (DatasetError, OSError) as error:
            return {"mended": render.notice(f"Nothing was changed. {error}", "bad")}
        return {
            **taken_up(self.home, written.path),
            "mended": render.notice(" ".join(written.actions)),
        }


def shown_columns(
    fields: Mapping[str, object], report: DatasetReport | None, is_new: bool
) -> Shown:
    """For data that is new here, the place to say what its columns are; it opens by itself where that is not known."""
    if not is_new:
        return {}
    names = report.found_columns if report else ()
    if report is None or not names or fields["dataset"] == "demo":
        return {"columns_panel": gr.update(visible=False)}
    kinds = [kind.id for kind in ROW_FORMATS if accepts(str(fields["stage"]), kind)]
    suggested = (kind.id for kind in ROW_FORMATS if kind.columns == tuple(report.suggestion))
    likely = next(
        (id for id in (report.row_format, *suggested, MOST_LIKELY) if id in kinds), kinds[0]
    )
    return {
        "columns_panel": gr.update(visible=True, open=not report.dataset_type),
        "kind": gr.update(choices=kinds, value=likely),
        "names": list(names),
        **_boxes(
            likely, names, report.suggestion or match_columns(ROW_FORMATS_BY_ID[likely], names)
        ),
    }


def _columns(kind: str) -> tuple[str, ...]:
    return ROW_FORMATS_BY_ID[kind].columns + ROW_FORMATS_BY_ID[kind].optional_columns


def _boxes(kind: str, names: Sequence[str], mapping: Mapping[str, str]) -> Shown:
    """One menu of the file's columns for each column of the kind; those that it may do without can stay empty."""
    shown: Shown = {box: gr.update(visible=False, choices=[], value=None) for box in COLUMN_BOXES}
    for box, ours in zip(COLUMN_BOXES, _columns(kind), strict=False):
        is_optional = ours in ROW_FORMATS_BY_ID[kind].optional_columns
        if is_optional and len(names) <= len(ROW_FORMATS_BY_ID[kind].columns):
            continue
        choices = [("(none)" if is_optional else "(choose)", ""), *((name, name) for name in names)]
        known = mapping.get(ours) or (ours if is_optional and ours in names else "")
        label = f"{ours}, if there is one" if is_optional else ours
        shown[box] = gr.update(visible=True, label=label, choices=choices, value=known)
    return shown
