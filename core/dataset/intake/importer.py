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
from typing import Any, Literal

from core.dataset.intake.convert import Sources
from core.dataset.reading.signatures import HEAD_BYTES, foreign_signature, wide_encoding
from core.dataset.reading.text_lines import layout_of
from core.dataset.report import counted
from core.device.child import Child, Limits
from core.job import ChildError, DatasetError, Problem
from core.job.places import is_there
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
MEMORY_BYTES = {"dataset": 2 * 2**30, "fetch": 6 * 2**30}
"""Worker -> its address space; pyarrow reserves far more than it uses."""
FIX = "look for very long rows, or give it in parts"


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


def must_be_imported(source: str) -> bool:
    """Return whether a source must become JSON lines: it is a table, or a dataset on the Hub."""
    return is_hub_dataset(source) or Path(source).suffix.lower() in TABLES


def is_hub_dataset(source: str) -> bool:
    """Return whether a source names a dataset on the Hub and neither is nor looks like a file."""
    if source.lower().endswith(FILES) or not HUB_DATASET.fullmatch(source):
        return False
    return not is_there(Path(source), Path.exists)


def import_dataset(
    source: str,
    folder: Path,
    *,
    limits: ImportLimits | None = None,
    on_progress: Callable[[ImportProgress], None] = lambda _progress: None,
    is_cancelled: Callable[[], bool] | None = None,
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
    is_cancelled: Callable[[], bool] | None
    deadline: float

    def download(self, source: str) -> tuple[Sources, str, str]:
        """Return (the files of a dataset on the Hub, a name for them, what was done)."""
        parts = HUB_DATASET.fullmatch(source)
        assert parts
        id, config, split = parts["id"], parts["config"] or "", parts["split"] or ""
        request = {"do": "download", "id": id, "config": config, "split": split}
        found = self._ask("fetch", {**request, "folder": str(self.work)}, "downloading")
        paths = [self.work / name for name in found["files"]]
        config, split = found["config"], found["split"]
        action = f"{id} ({config}, {split}) was fetched from the Hugging Face Hub."
        name = _file_name("-".join((id, config, split)))
        return Sources(paths, found["form"], found["delimiter"]), name, action

    def convert(self, sources: Sources) -> tuple[Path, int, tuple[str, ...]]:
        """Return (a file of JSON lines, its rows, what was done)."""
        target, number = self.work / "rows.jsonl", len(sources.paths)
        request: dict[str, Any] = {"paths": list(map(str, sources.paths)), "target": str(target)}
        if sources.form != "parquet":
            request |= {"do": "convert", "form": sources.form, "delimiter": sources.delimiter}
            found = self._ask("dataset", request, "converting")
            files = counted(number, f"{sources.form.upper()} file")
            return target, found["rows"], (f"{files} became JSON lines.",)
        found = self._ask("fetch", {"do": "tables", **request}, "converting")
        actions = [f"{counted(number, 'Parquet table')} became JSON lines."]
        if found["num_nan"]:
            actions.append(f"NaN became null in {counted(found['num_nan'], 'place')}.")
        if found["num_bytes"]:
            lost = counted(found["num_bytes"], "value")
            actions.append(f"Bytes that are no text were left out: {lost}.")
        return target, found["rows"], tuple(actions)

    def _ask(
        self, worker: Literal["dataset", "fetch"], request: Mapping[str, Any], doing: str
    ) -> dict[str, Any]:
        """Return the answer of a worker. Raises DatasetError."""
        limit = self.limits
        child_limits = Limits(
            MEMORY_BYTES[worker], cpu_seconds=int(limit.seconds) + 1, file_bytes=limit.max_bytes
        )
        is_fetch = worker == "fetch"
        try:
            with Child(f"core.workers.{worker}", child_limits, reads_hub=is_fetch) as child:
                answer = child.ask(
                    {**request, "max_bytes": limit.max_bytes},
                    self.deadline - time.monotonic(),
                    on_progress=lambda share: self.on_progress(ImportProgress(doing, share)),
                    is_cancelled=self.is_cancelled,
                )
                return dict(answer)
        except ChildError as error:
            if error.cause == "refused":
                raise DatasetError(*error.problems) from None
            raise DatasetError(Problem("file", f"{doing} it: {error.reason}", FIX)) from None


def _sources_on_disk(path: Path, limits: ImportLimits) -> Sources | None:
    """Return how to read a file; None if it is JSONL. Raises DatasetError, OSError."""
    if not is_there(path):
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
    if wide_encoding(head) or not layout_of(path).is_usual:
        return Sources([path], "json")
    return None


def _count_rows(path: Path) -> int:
    with path.open("rb") as file:
        return sum(not line.isspace() for line in file)


def _file_name(stem: str) -> str:
    """Return a name that is safe in every file system."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip(".-")[:100] or "data"
