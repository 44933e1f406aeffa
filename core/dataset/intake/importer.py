"""Import CSV, Parquet, JSON arrays and Hub datasets: each becomes one file of JSON lines.

Everything is read in child processes with limits on memory, time and size. Values stay exactly what
they are.
"""

import re
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.dataset.intake.convert import Sources
from core.dataset.reading.json_array import is_array
from core.dataset.reading.signatures import HEAD_BYTES, foreign_signature, wide_encoding
from core.dataset.report import counted
from core.device.child import Child, Limits, never
from core.job import ChildError, DatasetError, Problem
from core.training.contract.files import sha256_of

HUB_DATASET = re.compile(
    r"(?P<id>\w[\w.-]{0,95}/\w[\w.-]{0,95})"
    r"(?::(?P<config>[\w. +-]{0,200})(?:/(?P<split>[\w.]{1,100}))?)?"
)
"""owner/name, owner/name:config, owner/name:config/split or owner/name:/split."""
CSV_SUFFIXES = (".csv", ".tsv")
PARQUET_SIGNATURE = b"PAR1"
TABLES = (*CSV_SUFFIXES, ".parquet")
FILES = (*TABLES, ".jsonl", ".json")
"""Endings of files, found or not: a dataset's name may hold dots too."""
CONVERT_MEMORY_BYTES = 2 * 2**30
FETCH_MEMORY_BYTES = 6 * 2**30
"""Of address space: pyarrow reserves far more than it uses."""


@dataclass(frozen=True)
class Imported:
    """JSONL file, and how it was made."""

    path: Path
    rows: int
    actions: tuple[str, ...]
    """Sentences that say what was done; none if the source already was JSONL."""
    sha256: str


@dataclass(frozen=True)
class ImportLimits:
    """Largest size and longest time of an import."""

    max_bytes: int = 20 * 2**30
    """Of the source, and of each file that is made of it."""
    seconds: float = 1800


@dataclass(frozen=True)
class ImportProgress:
    """Step that an import is at, and the share of it that is done."""

    doing: str
    """downloading or converting."""
    share: float
    """From 0 to 1."""


def ignore_import_progress(_progress: ImportProgress) -> None:
    """Do nothing with progress."""


def must_be_imported(source: str) -> bool:
    """Return whether a source must become JSON lines: it is a table, or a dataset on the Hub."""
    return is_hub_dataset(source) or Path(source).suffix.lower() in TABLES


def is_hub_dataset(source: str) -> bool:
    """Return whether a source names a dataset on the Hub and neither is nor looks like a file."""
    if source.lower().endswith(FILES) or not HUB_DATASET.fullmatch(source):
        return False
    return not Path(source).exists()


def import_dataset(
    source: str,
    folder: Path,
    *,
    limits: ImportLimits | None = None,
    on_progress: Callable[[ImportProgress], None] = ignore_import_progress,
    is_cancelled: Callable[[], bool] = never,
) -> Imported:
    """Write a file or `owner/name[:config[/split]]` as a JSONL file in a folder.

    A file that is JSONL already stays where it is. Raises DatasetError, OSError.
    """
    limits = limits or ImportLimits()
    with tempfile.TemporaryDirectory(prefix=".importing-", dir=folder) as work:
        deadline = time.monotonic() + limits.seconds
        run = _Import(Path(work), limits, on_progress, is_cancelled, deadline)
        actions: tuple[str, ...] = ()
        if is_hub_dataset(source):
            sources, name, action = run.download(source)
            actions = (action,)
        else:
            path = Path(source)
            found = _sources_on_disk(path, limits)
            if found is None:
                return Imported(path, _count_rows(path), (), sha256_of(path))
            sources, name = found, _file_name(path.stem)
        written, rows, more = run.convert(sources)
        target = folder / f"{name}.jsonl"
        if target.exists():
            raise FileExistsError(17, "already exists", str(target))
        written.rename(target)
        return Imported(target, rows, (*actions, *more), sha256_of(target))


@dataclass(frozen=True)
class _Import:
    """One import under way."""

    work: Path
    """Folder for the files of the children; it is deleted at the end."""
    limits: ImportLimits
    on_progress: Callable[[ImportProgress], None]
    is_cancelled: Callable[[], bool]
    deadline: float

    def download(self, source: str) -> tuple[Sources, str, str]:
        """Return (the files of a dataset on the Hub, a name for them, what was done)."""
        parts = HUB_DATASET.fullmatch(source)
        assert parts
        id, config, split = parts["id"], parts["config"] or "", parts["split"] or ""
        request = {"do": "download", "id": id, "config": config, "split": split}
        found = self._fetch({**request, "folder": str(self.work)}, "downloading")
        paths = [self.work / name for name in found["files"]]
        config, split = found["config"], found["split"]
        action = f"{id} ({config}, {split}) was fetched from the Hugging Face Hub."
        name = _file_name("-".join((id, config, split)))
        return Sources(paths, found["form"], found["delimiter"]), name, action

    def convert(self, sources: Sources) -> tuple[Path, int, tuple[str, ...]]:
        """Return (a file of JSON lines, its rows, what was done)."""
        target = self.work / "rows.jsonl"
        request: dict[str, Any] = {"paths": list(map(str, sources.paths)), "target": str(target)}
        number = len(sources.paths)
        if sources.form == "parquet":
            found = self._fetch({"do": "tables", **request}, "converting")
            actions = [f"{counted(number, 'Parquet table')} became JSON lines."]
            if found["left_out"]:
                lost = ", ".join(f"{name} ({type})" for name, type in found["left_out"])
                actions.append(f"Left out, because JSON has no such values: {lost}.")
            return target, found["rows"], tuple(actions)
        request |= {"do": "convert", "form": sources.form, "delimiter": sources.delimiter}
        child = Child("core.workers.dataset", self._child_limits(CONVERT_MEMORY_BYTES))
        found = self._ask(child, request, "converting")
        files = counted(number, f"{sources.form.upper()} file")
        return target, found["rows"], (f"{files} became JSON lines.",)

    def _fetch(self, request: Mapping[str, Any], doing: str) -> dict[str, Any]:
        """Ask the worker that has the libraries for the Hub and for Parquet."""
        child_limits = self._child_limits(FETCH_MEMORY_BYTES)
        child = Child("core.workers.fetch", child_limits, reads_hub=True)
        return self._ask(child, {**request, "max_bytes": self.limits.max_bytes}, doing)

    def _child_limits(self, memory_bytes: int) -> Limits:
        seconds = int(self.limits.seconds) + 1
        return Limits(memory_bytes, cpu_seconds=seconds, file_bytes=self.limits.max_bytes)

    def _ask(self, child: Child, request: Mapping[str, Any], doing: str) -> dict[str, Any]:
        try:
            with child:
                return dict(
                    child.ask(
                        request,
                        self.deadline - time.monotonic(),
                        on_progress=lambda share: self.on_progress(ImportProgress(doing, share)),
                        is_cancelled=self.is_cancelled,
                    )
                )
        except ChildError as error:
            raise self._explain(error, doing) from None

    def _explain(self, error: ChildError, doing: str) -> DatasetError:
        fix = "look for very long rows, or give it in parts"
        if error.cause == "refused":
            return DatasetError(*error.problems)
        if error.cause == "cancelled":
            return DatasetError(Problem("file", f"cancelled while {doing} it", "start it again"))
        if error.cause == "too_long":
            problem = f"{doing} it took longer than {self.limits.seconds:g} seconds"
            return DatasetError(Problem("file", problem, fix))
        return DatasetError(Problem("file", f"{doing} it failed: {error.reason}", fix))


def _sources_on_disk(path: Path, limits: ImportLimits) -> Sources | None:
    """Return how to read a file; None if it is JSONL. Raises DatasetError, OSError."""
    if not path.is_file():
        fix = "give the path of a file, or owner/name of a dataset on the Hugging Face Hub"
        raise DatasetError(Problem("file", f"there is no file {path}", fix))
    size, limit = path.stat().st_size / 2**30, limits.max_bytes / 2**30
    if size > limit:
        problem = f"is {size:.1f} GiB, more than {limit:.1f} GiB"
        raise DatasetError(Problem("file", problem, "give a part of it"))
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    suffix = path.suffix.lower()
    if head.startswith(PARQUET_SIGNATURE):
        return Sources([path], "parquet")
    if suffix in CSV_SUFFIXES:
        return Sources([path], "csv", "\t" if suffix == ".tsv" else "")
    if foreign := foreign_signature(head):
        raise DatasetError(Problem("file", f"this is {foreign.name}, not rows", foreign.fix))
    if is_array(head) or wide_encoding(head):
        return Sources([path], "json")
    return None


def _count_rows(path: Path) -> int:
    with path.open("rb") as file:
        return sum(not line.isspace() for line in file)


def _file_name(stem: str) -> str:
    """Return a name that is safe in every file system."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip(".-")[:100] or "data"
