"""Data files of a command: found, imported, split and mapped as its flags ask."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from core.dataset import counted
from core.dataset.intake import (
    SPLITS,
    TABLES,
    TEXT_SUFFIXES,
    Split,
    import_dataset,
    is_hub_dataset,
    must_be_imported,
)
from core.dataset.rewrite import (
    Written,
    drop_bad_rows,
    keep_wanted,
    map_columns,
    parse_mapping,
    repair,
    split_text,
)
from core.job import DatasetError, Problem, SpecError
from core.job.places import is_there, unquoted
from core.resolve import dataset_path
from core.runs import Home
from ui.terminal.printing import say


@dataclass(frozen=True)
class DataFile:
    """File to read, and what was done to make it."""

    path: Path
    actions: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataFinder:
    """Finds the files that a command names, and reads them as its flags say."""

    home: str | None
    """Home folder, which is created only if a file must be written."""
    stage: str
    columns: str = ""
    """Mapping as `parse_mapping` takes it; empty keeps the names of the file."""
    split: str = ""
    """One of SPLITS for plain texts; empty chooses the usual way."""

    def find(self, source: str, field: str = "file", *, may_be_ready: bool = False) -> DataFile:
        """Return the file of a dataset. Raises TailorError, OSError.

        A file that may be ready stays as it is if it cannot be split or mapped.
        """
        mapping = parse_mapping(self.columns) if self.columns else {}
        if self.split and self.split not in SPLITS:
            fix = f"choose {', '.join(SPLITS)}"
            raise SpecError(Problem("split-text", f"{self.split!r} is not a way to split", fix))
        if not is_there(Path(source), Path.exists):
            source = unquoted(source)
        if must_be_imported(source):
            found = self._imported(source, field)
        else:
            found = DataFile(self._path(source, field))
        try:
            return self._prepared(found, mapping)
        except DatasetError:
            if may_be_ready:
                return found
            raise

    def _prepared(self, found: DataFile, mapping: Mapping[str, str]) -> DataFile:
        """Return a file, split and mapped."""
        if self.split:
            split = cast(Split, self.split)
            found = self._rewritten(
                found, "split", lambda source, target: split_text(source, target, split)
            )
        if mapping:
            found = self._mapped(found, mapping)
        return found

    def _path(self, source: str, field: str) -> Path:
        path = dataset_path(source, self.stage)
        if not is_there(path):
            fix = "give the path of a file, owner/name of a dataset on the Hub, or demo"
            raise SpecError(Problem(field, f"there is no file {source}", fix))
        return path

    def _imported(self, source: str, field: str) -> DataFile:
        """Convert a table or a dataset on the Hub to JSON lines."""
        path = source if is_hub_dataset(source) else str(self._path(source, field))
        say(f"Importing {source} ...")
        imported = import_dataset(path, Home.find(self.home).new_upload_folder())
        rows = counted(imported.rows, "row")
        summary = f"{rows} in {imported.path}, whose lines are the ones that are named."
        say(" ".join((*imported.actions, summary)))
        return DataFile(imported.path)

    def _mapped(self, found: DataFile, mapping: Mapping[str, str]) -> DataFile:
        def rewrite(source: Path, target: Path) -> Written:
            return map_columns(source, target, mapping, keeps_bad_lines=True)

        return self._rewritten(found, "mapped", rewrite)

    def _rewritten(
        self, found: DataFile, suffix: str, rewrite: Callable[[Path, Path], Written]
    ) -> DataFile:
        folder = Home.find(self.home).new_upload_folder()
        written = rewrite(found.path, folder / f"{found.path.stem}-{suffix}.jsonl")
        return DataFile(written.path, (*found.actions, *written.actions))


def write_changed(source: DataFile, targets: Mapping[str, str]) -> DataFile:
    """Write a file repaired, and without unwanted rows, where there is a path for it.

    Keys are flags. Raises TailorError, OSError.
    """
    for flag, change in (("repair", repair), ("keep-wanted", keep_wanted)):
        if targets[flag]:
            source = _write(source, targets[flag], flag, change)
    return source


def write_without_bad_rows(source: DataFile, target: str, stage: str) -> DataFile:
    """Write a file without the rows that have problems. Raises TailorError, OSError."""

    def drop(path: Path, out: Path) -> Written:
        return drop_bad_rows(path, out, stage)

    return _write(source, target, "drop-bad", drop)


def require_new_files(targets: Mapping[str, str]) -> None:
    """Raise SpecError unless a new file can be written at each path; "" is none. Keys are flags."""
    for field, target in targets.items():
        if target:
            _require_new_file(target, field)


def _require_new_file(target: str, field: str) -> None:
    """Raise SpecError unless a new file of JSON lines can be written at a path."""
    path = dataset_path(target)
    if is_there(path, Path.exists):
        raise SpecError(Problem(field, f"{target} already exists", "name a file that does not"))
    if not is_there(path.parent, Path.is_dir):
        raise SpecError(Problem(field, f"there is no folder {path.parent}", "create it first"))
    if path.suffix.lower() in (*TABLES, *TEXT_SUFFIXES):
        problem = f"{target} would hold JSON lines"
        raise SpecError(Problem(field, problem, "give it a name that ends in .jsonl"))


def _write(
    source: DataFile, target: str, field: str, write: Callable[[Path, Path], Written]
) -> DataFile:
    _require_new_file(target, field)
    try:
        written = write(source.path, dataset_path(target))
    except DatasetError as error:
        raise SpecError(*(replace(each, field=field) for each in error.problems)) from None
    except OSError as error:
        problem = f"{target} cannot be written: {error.strerror}"
        raise SpecError(Problem(field, problem, "give another path")) from None
    done = " ".join(written.actions) or "Nothing needed to be changed."
    action = f"Wrote {target}: {counted(written.rows, 'row')}. {done}"
    return DataFile(written.path, (*source.actions, action))
