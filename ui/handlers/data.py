"""What happens to the data: an upload is kept and checked, bad rows are dropped, the file is repaired."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import gradio as gr

from core import dataset
from core.dataset import (
    TABLES,
    USUAL_STAGES,
    DatasetReport,
    Wish,
    Written,
    counted,
    drop_bad_rows,
    parse_mix,
    repair,
)
from core.job import DatasetError, Problem, SpecError
from core.resolve import dataset_path, is_there
from core.runs import Home, keep, new_folder
from core.speed import RowStatistics
from core.training.contract.stages import STAGES
from ui import render
from ui.handlers.intake import IntakeHandlers
from ui.handlers.menu import taken_up
from ui.handlers.shown import Shown
from ui.render import dataset as panel

LARGE_FILE_BYTES = 4 * 2**20
BYTES_PER_TOKEN = 4
"""Of English text under the usual vocabularies; enough for a forecast until the rows are tokenised."""


class DataHandlers(IntakeHandlers):
    """The events of the data, over one home folder."""

    home: Home

    def on_upload(self, upload: str | None) -> Shown:
        """A file was dropped: it is kept under its content's name, and becomes the job's data; a table is taken in."""
        if not upload:
            return {}
        source = Path(upload)
        suffix = source.suffix.lower() if source.suffix.lower() in TABLES else ".jsonl"
        kept = keep(self.home, source, suffix)
        taken = (
            self.on_take_in(str(kept))
            if suffix in TABLES
            else taken_up(self.home, kept) | {"mended": ""}
        )
        return taken | {"upload": None}

    def on_usual_stage(self, dataset: str, stage: str) -> Shown:
        """The data is of another stage: that stage is chosen."""
        report = report_of({"dataset": dataset, "stage": stage})
        return (
            {"stage": USUAL_STAGES[report.dataset_type]} if report and report.dataset_type else {}
        )

    def on_drop_rows(self, dataset: str, stage: str) -> Shown:
        """Writes the data again without its bad rows, and takes the new file as the data."""
        return self._mended(
            dataset,
            stage,
            "good",
            lambda path, target: drop_bad_rows(path, target, Wish(stage=stage)),
        )

    def on_repair(self, dataset: str, stage: str) -> Shown:
        """Writes the data again with everything repaired that can be, and takes the new file as the data."""
        return self._mended(dataset, stage, "repaired", repair)

    def _mended(
        self, dataset: str, stage: str, how: str, mend: Callable[[Path, Path], Written]
    ) -> Shown:
        source = dataset_path(dataset, stage)
        try:
            written = mend(source, new_folder(self.home) / f"{source.stem}-{how}.jsonl")
        except (DatasetError, OSError) as error:
            return {"mended": render.notice(f"Nothing was changed. {error}", "bad")}
        said = " ".join(written.actions) or "Nothing needed to be changed."
        return {
            **taken_up(self.home, written.path),
            "mended": render.notice(f"{said} The old file stays as it is."),
        }


def report_of(fields: Mapping[str, object]) -> DatasetReport | None:
    """The report on a form's data; None where there is no such file."""
    path = _data_of(fields)
    return checked(path, str(fields.get("stage") or "sft")) if is_there(path) else None


def shown_data(report: DatasetReport | None) -> Shown:
    """One line about the data, what is behind it, and the buttons that would mend it."""
    can_drop = report is not None and report.num_problems > 0 and report.valid_rows > 0
    other = (
        STAGES[USUAL_STAGES[report.dataset_type]]
        if report and "wrong_type" in report.counts
        else None
    )
    return {
        "usual_stage": gr.update(
            visible=other is not None, value=f"Train with it: {other.title}" if other else ""
        ),
        "data_line": panel.data_report(report) if report else "",
        "drop_rows": gr.update(visible=can_drop),
        "repair": gr.update(visible=report is not None and bool(report.repairs)),
    }


def row_statistics(fields: Mapping[str, object]) -> RowStatistics | None:
    """How many rows the data has, and about how long they are: in English text a token is some four bytes."""
    report = report_of(fields)
    if report is None or not report.rows:
        return None
    mean_tokens = max(1.0, _data_of(fields).stat().st_size / report.rows / BYTES_PER_TOKEN)
    return RowStatistics(report.rows + _mixed_in(fields), mean_tokens)


def _mixed_in(fields: Mapping[str, object]) -> int:
    """How many rows the further files of a form bring, by their weights; none from a file that is not there."""
    with suppress(ValueError, OSError):
        sources, stage = parse_mix(str(fields.get("mix") or "")), str(fields.get("stage") or "sft")
        return round(sum(weight * checked(path.absolute(), stage).rows for path, weight in sources))
    return 0


def checked(path: Path, stage: str) -> DatasetReport:
    """The report on a file; read again only when the file has changed."""
    stat = path.stat()
    return _report(path, stage, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=32)
def _report(path: Path, stage: str, _modified: int, size: int) -> DatasetReport:
    """A large file, which could hold the page up, is checked in a child process."""
    return (
        dataset.check_in_child(path, stage)
        if size > LARGE_FILE_BYTES
        else dataset.check_file(path, stage)
    )


def require_usable(field: str, path: Path, report: DatasetReport) -> None:
    if not report.is_usable:
        first = report.problems[0]
        where = (
            f"line {first.line:,}"
            if first.field == "row"
            else f"line {first.line:,}, {first.field}"
        )
        lines = f"{counted(report.num_problems, 'line')} of {path.name}"
        problem = f"{lines} cannot be used, the first is {where}: {first.message}"
        raise SpecError(
            Problem(field, first.message if first.field == "file" else problem, first.fix)
        )


def _data_of(fields: Mapping[str, object]) -> Path:
    return dataset_path(str(fields.get("dataset") or ""), str(fields.get("stage") or "sft"))
