"""Data events: upload, import, repair; and what the page shows of a dataset. Changes no file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import gradio as gr

from core.dataset import DatasetReport
from core.dataset.formats import TEXT_STAGE, USUAL_STAGES
from core.dataset.intake import (
    SPLITS,
    TABLES,
    TEXT_SUFFIXES,
    is_hub_dataset,
    must_be_imported,
)
from core.dataset.rewrite import in_child
from core.job import DatasetError
from core.resolve import dataset_path
from core.runs import Home
from core.training.contract.row_formats import find_row_format
from core.training.contract.stages import STAGES
from core.wording import ago
from ui import render
from ui.events import Updates
from ui.form import DEMO_DATA, Choices
from ui.handlers.imports import Imports, show_import
from ui.handlers.reports import report_of
from ui.render import dataset as panel

MAX_LISTED = 30
LABELLED = "unpaired preference"
"""Type of rows whose label says whether their answer is wanted."""


@dataclass(frozen=True)
class DataHandlers:
    """Events of the data of the form, over one home folder."""

    home: Home
    imports: Imports

    def on_upload(self, upload: str | None) -> Updates:
        """Keep an uploaded file and use it as the data. Tables are imported as JSONL."""
        if not upload:
            return {}
        source = Path(upload)
        suffix = source.suffix.lower()
        if suffix in TABLES:
            kept = self.home.keep(source, suffix)
            return {**self.on_import(str(kept)), "upload": None}
        kept = self.home.keep(source, suffix if suffix in TEXT_SUFFIXES else ".jsonl")
        return {**use_file(self.home, kept), "data_message": "", "upload": None}

    def on_import(self, dataset: str) -> Updates:
        """Start to import the table or the Hub dataset that the data field names."""
        source = dataset if is_hub_dataset(dataset) else str(dataset_path(dataset))
        return self.on_import_progress(self.imports.begin(source))

    def on_import_progress(self, import_id: str) -> Updates:
        """Show the progress of an import. Once it is finished, use its file as the data."""
        updates, path = show_import(self.imports, import_id)
        if path:
            updates |= use_file(self.home, path)
        return updates

    def on_cancel_import(self, import_id: str) -> Updates:
        """Cancel an import."""
        self.imports.cancel(import_id)
        return {}

    def on_switch_stage(self, dataset: str, stage: str) -> Updates:
        """Choose the stage that the type of the data is for."""
        report = report_of({"dataset": dataset, "stage": stage})
        fitting = fitting_stage(report) if report else ""
        return {"stage": fitting} if fitting else {}

    def on_train_without(self) -> Updates:
        """Consent to a training without what is not read."""
        return {"accept_unread": True}

    def on_keep_wanted(self, dataset: str, stage: str) -> Updates:
        """Write the data without the rows whose label is false to a new file and use that."""
        return self._rewrite("keep_wanted", dataset, stage, "wanted")

    def on_remove_rows(self, dataset: str, stage: str) -> Updates:
        """Write the data without its invalid rows to a new file and use that."""
        if stage not in STAGES:
            return {}
        return self._rewrite("drop_bad_rows", dataset, stage, "valid", stage=stage)

    def on_repair(self, dataset: str, stage: str) -> Updates:
        """Write the data with everything repaired that can be to a new file and use that."""
        return self._rewrite("repair", dataset, stage, "repaired")

    def on_split_text(self, dataset: str, stage: str, split_text: str | None) -> Updates:
        """Write a plain text as rows that are split as the user chose, and use that."""
        if not split_text or split_text not in SPLITS:
            return {}
        return self._rewrite("split_text", dataset, stage, split_text, split=split_text)

    def _rewrite(
        self, how: str, dataset: str, for_stage: str, suffix: str, **details: object
    ) -> Updates:
        """Write the data again and use the new file; `how` is a way of in_child.REWRITES."""
        source = dataset_path(dataset, for_stage)
        try:
            target = self.home.new_upload_folder() / f"{source.stem}-{suffix}.jsonl"
            written = in_child.rewrite(how, source, target, **details)
        except (DatasetError, OSError) as error:
            return {"data_message": render.notice(f"Nothing was changed. {error}", "bad")}
        done = " ".join(written.actions) or "Nothing needed to be changed."
        said = render.notice(f"{done} The original file is unchanged.")
        return {**use_file(self.home, written.path), "data_message": said}


def fitting_stage(report: DatasetReport) -> str:
    """Return the stage that the data is for, if it is not the present one; else ""."""
    if "plain_text" in report.counts:
        return TEXT_STAGE
    if "wrong_type" in report.counts:
        return USUAL_STAGES.get(report.dataset_type, "")
    if report.unwanted:
        stage = USUAL_STAGES[LABELLED]
        labelled = find_row_format(report.found_columns, stage)
        if labelled and labelled.dataset_type == LABELLED:
            return stage
    return ""


def use_file(home: Home, path: Path) -> Updates:
    """Make a file the data of the form."""
    return {"dataset": gr.update(choices=data_choices(home), value=str(path))}


def data_choices(home: Home) -> Choices:
    """Return the demo and the files that the user has brought, the newest first."""
    choices = [DEMO_DATA]
    for path in home.kept_rows(MAX_LISTED):
        choices.append((f"{path.name} · {ago(path.stat().st_mtime)}", str(path)))
    return choices


def show_data(
    values: Mapping[str, object], report: DatasetReport | None, misfit: str = ""
) -> Updates:
    """Show the report on the data, and the buttons that would help.

    `misfit` says which other file of the job has rows of another kind.
    """
    updates: Updates = {
        "import_data": gr.update(visible=must_be_imported(str(values["dataset"]))),
        "data_line": "",
        "train_without": gr.update(visible=False),
        "switch_stage": gr.update(visible=False),
        "keep_wanted": gr.update(visible=False),
        "remove_rows": gr.update(visible=False),
        "repair": gr.update(visible=False),
        "split_text": gr.update(visible=False),
    }
    if report is None:
        return updates
    can_remove = report.num_problems > 0 and report.valid_rows > 0
    needs_consent = bool(report.needs_consent) and not values["accept_unread"]
    updates["train_without"] = gr.update(visible=needs_consent)
    updates["keep_wanted"] = gr.update(visible=report.unwanted > 0)
    updates["data_line"] = panel.data_report(report) + render.notice(misfit, "bad")
    updates["remove_rows"] = gr.update(visible=can_remove)
    updates["repair"] = gr.update(visible=bool(report.repairs))
    updates["split_text"] = gr.update(visible="text" in report.repairs, value=None)
    if fitting := fitting_stage(report):
        title = STAGES[fitting].title
        updates["switch_stage"] = gr.update(visible=True, value=f"Switch to stage {title}")
    return updates
