"""Datasets of other kinds, made JSON lines once, at the door: CSV, Parquet, a JSON array, a dataset on the Hub.

All of it is read in child processes with limits on memory, time and size. Values stay exactly what they are.
"""

import re
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from core.dataset.check.in_child import MEMORY_BYTES, TIME_LIMIT_SECONDS, Progress
from core.dataset.check.json_array import is_array
from core.dataset.check.signatures import HEAD_BYTES, foreign_signature, wide_encoding
from core.dataset.intake.convert import Sources
from core.dataset.report import counted, file_problem
from core.device.child import HUB_SETTINGS, HUB_VARIABLES, Child
from core.job import ChildDied, DatasetError, Problem
from core.training.contract.files import sha256_of

HUB_DATASET = re.compile(
    r"(?P<id>\w[\w.-]{0,95}/\w[\w.-]{0,95})(?::(?P<config>[\w. +-]{0,200})(?:/(?P<split>[\w.]{1,100}))?)?"
)
"""owner/name, owner/name:config, owner/name:config/split or owner/name:/split."""
MAX_BYTES = 20 * 2**30
FETCH_MEMORY_BYTES = 6 * 2**30
"""Of address space: pyarrow reserves far more than it uses."""
CSV_SUFFIXES = (".csv", ".tsv")
PARQUET = b"PAR1"
TABLES = (*CSV_SUFFIXES, ".parquet")
FILES = (*TABLES, ".jsonl", ".json")
"""What ends like this is meant as a file, here or not; a dataset's name may hold dots too."""


@dataclass(frozen=True)
class Taken:
    """A JSONL file, and how it came to be."""

    path: Path
    rows: int
    actions: tuple[str, ...]
    """What was done, in sentences; none if the source was taken as it is."""
    sha256: str


@dataclass(frozen=True)
class Terms:
    """How a source is to be taken in."""

    columns: Mapping[str, str] = field(default_factory=dict)
    """Column of ours -> column of the source; none keeps every column."""
    label: str = ""
    """A column of a CSV file to be read as true or false."""
    revision: str = "main"
    """Of a dataset on the Hub."""
    max_bytes: int = MAX_BYTES
    """Of the source, and of what comes of it."""
    time_limit_seconds: float = TIME_LIMIT_SECONDS


def must_be_taken_in(source: str) -> bool:
    """True for what has to become JSON lines before it is trained on: a table, or a dataset on the Hub."""
    return is_hub_dataset(source) or Path(source).suffix.lower() in TABLES


def is_hub_dataset(source: str) -> bool:
    """True if a source names a dataset on the Hub: it looks like one and not like a file, and no such file is here."""
    looks_like_one = HUB_DATASET.fullmatch(source) is not None and not source.lower().endswith(
        FILES
    )
    return looks_like_one and not Path(source).exists()


def take_in(
    source: str,
    folder: Path,
    terms: Terms | None = None,
    *,
    on_progress: Callable[[Progress], None] = lambda _progress: None,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> Taken:
    """Makes a file or `owner/name[:config[/split]]` a JSONL file in a folder; what is JSONL already stays where it is.

    Raises DatasetError with what is wrong (code `cancelled` if it was called off), OSError.
    """
    terms = terms or Terms()
    with tempfile.TemporaryDirectory(prefix=".taking-", dir=folder) as work:
        visit = Visit(Path(work), terms, on_progress, is_cancelled)
        sources, name, actions = (
            visit.download(source) if is_hub_dataset(source) else _on_disk(Path(source), terms)
        )
        path, rows, more = (
            visit.written(sources) if sources.form else (sources.paths[0], _count_rows(source), ())
        )
        if path.parent == visit.work:
            target = folder / f"{name}.jsonl"
            if target.exists():
                raise FileExistsError(17, "already exists", str(target))
            path = path.rename(target)
        return Taken(path, rows, actions + more, sha256_of(path))


@dataclass(frozen=True)
class Visit:
    """One source on its way in: what its children are told, and may use."""

    work: Path
    """Theirs to write into; it goes when they are done."""
    terms: Terms
    on_progress: Callable[[Progress], None]
    is_cancelled: Callable[[], bool]
    begun: float = field(default_factory=time.monotonic)

    def download(self, source: str) -> tuple[Sources, str, tuple[str, ...]]:
        """(the files of a dataset on the Hub, a name for them, what was done)."""
        found = HUB_DATASET.fullmatch(source)
        assert found
        id, config, split = found["id"], found["config"] or "", found["split"] or ""
        request = {"id": id, "config": config, "split": split, "revision": self.terms.revision}
        done = self.fetch({"do": "download", "folder": str(self.work)} | request, "downloading")
        paths = [self.work / name for name in done["files"]]
        told = f"{id} ({done['config']}, {done['split']}) was fetched from the Hugging Face Hub."
        name = _file_name("-".join((id, done["config"], done["split"])))
        return self._sources(paths, done["form"], done["delimiter"]), name, (told,)

    def written(self, sources: Sources) -> tuple[Path, int, tuple[str, ...]]:
        """(a file of JSON lines, its rows, what was done)."""
        if sources.form != "parquet":
            return self._lines(
                sources,
                f"{counted(len(sources.paths), f'{sources.form.upper()} file')} became JSON lines.",
            )
        target = self.work / "tables.jsonl"
        request = {"paths": list(map(str, sources.paths)), "target": str(target)}
        done = self.fetch(
            {"do": "tables", "needed": list(sources.columns.values())} | request, "converting"
        )
        lost = ", ".join(f"{name} ({type})" for name, type in done["left_out"])
        actions: tuple[str, ...] = (
            f"{counted(len(sources.paths), 'Parquet table')} became JSON lines.",
        )
        actions += (f"Left out, because JSON has no such values: {lost}.",) if lost else ()
        if not sources.columns:
            return target, done["rows"], actions
        path, rows, more = self._lines(self._sources([target], "json"), "")
        return path, rows, actions + more

    def fetch(self, request: Mapping[str, Any], doing: str) -> dict[str, Any]:
        """What the program with the libraries makes of a request."""
        child = Child("core.workers.fetch", HUB_VARIABLES, HUB_SETTINGS)
        return self._ask(child, {**request, "memory_bytes": FETCH_MEMORY_BYTES}, doing)

    def _lines(self, sources: Sources, action: str) -> tuple[Path, int, tuple[str, ...]]:
        target = self.work / "rows.jsonl"
        request = {
            "do": "lines",
            "sources": asdict(sources) | {"paths": list(map(str, sources.paths))},
        }
        limits = {"target": str(target), "memory_bytes": MEMORY_BYTES}
        done = self._ask(Child("core.workers.dataset"), request | limits, "converting")
        return target, done["rows"], tuple(filter(None, (action, *done["actions"])))

    def _sources(self, paths: list[Path], form: str, delimiter: str = "") -> Sources:
        return Sources(paths, form, delimiter, self.terms.label, self.terms.columns)

    def _ask(self, child: Child, request: Mapping[str, Any], doing: str) -> dict[str, Any]:
        limit = self.terms.time_limit_seconds
        limits = {"max_bytes": self.terms.max_bytes, "cpu_seconds": int(limit) + 1}
        fix = "look for very long rows, or give it in parts"
        try:
            with child:
                child.send({**request, **limits})
                while (left := self.begun + limit - time.monotonic()) > 0 and (
                    message := child.receive(left, self.is_cancelled)
                ):
                    if "problem" in message:
                        raise DatasetError(_problem(message["problem"]))
                    if "done" in message:
                        return dict(message["done"])
                    self.on_progress(Progress(**message, doing=doing))
        except ChildDied as error:
            raise DatasetError(
                file_problem("died", f"{doing} it did not succeed: {error.reason}", fix).for_user()
            ) from None
        if self.is_cancelled():
            raise DatasetError(
                file_problem("cancelled", f"{doing} it was called off", "start it again").for_user()
            )
        raise DatasetError(
            file_problem(
                "too_long", f"{doing} it took longer than {limit:g} seconds", fix
            ).for_user()
        )


def _on_disk(path: Path, terms: Terms) -> tuple[Sources, str, tuple[str, ...]]:
    """(what a file is, a name for what comes of it, nothing done); without a form it is JSONL already."""
    if not path.is_file():
        fix = "give the path of a file, or owner/name of a dataset on the Hugging Face Hub"
        raise DatasetError(file_problem("unreadable", f"there is no file {path}", fix).for_user())
    if path.stat().st_size > terms.max_bytes:
        message = (
            f"is {path.stat().st_size / 2**30:.1f} GiB, more than {terms.max_bytes / 2**30:.1f} GiB"
        )
        raise DatasetError(file_problem("too_large", message, "give a part of it").for_user())
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    form = "json"
    if head.startswith(PARQUET):
        form = "parquet"
    elif path.suffix.lower() in CSV_SUFFIXES:
        form = "csv"
    elif foreign := foreign_signature(head):
        raise DatasetError(
            file_problem("not_text", f"this is {foreign.name}, not rows", foreign.fix).for_user()
        )
    elif not (terms.columns or is_array(head) or wide_encoding(head)):
        form = ""
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ""
    return Sources([path], form, delimiter, terms.label, terms.columns), _file_name(path.stem), ()


def _count_rows(path: str) -> int:
    with Path(path).open("rb") as file:
        return sum(not line.isspace() for line in file)


def _file_name(stem: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip(".-")[:100] or "data"


def _problem(told: Any) -> Problem:
    """What a child said is wrong."""
    if isinstance(told, dict):
        return Problem(**told)
    message, fix = told
    return Problem("file", str(message), str(fix))
