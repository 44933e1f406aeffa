"""What people do to runs in the history: name and annotate, delete, bring back, empty the trash, measure the disk.

Nothing here reaches outside the home folder, and nothing follows a link.
"""

import os
import re
import secrets
import shutil
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

from core.job import Problem, RunNotFound, SpecError
from core.runs.home import Home, locked
from core.runs.run import RUN_ID, About, Run, read
from core.training.contract.files import write_json

MOST_CHARACTERS = {"title": 120, "notes": 10_000, "tag": 40}
MOST_TAGS = 20
REORDERING = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
"""Bidirectional classes of characters that make text look like other text (Unicode, UAX 9)."""


def annotate(
    home: Home,
    run_id: str,
    *,
    title: str | None = None,
    notes: str | None = None,
    tags: Iterable[str] | None = None,
) -> Run:
    """Changes what is said about a run; None leaves it. Raises RunNotFound, or SpecError with every problem."""
    with locked(home):
        before = read(home, run_id).about
        about = About(
            title=before.title if title is None else title.strip(),
            notes=before.notes if notes is None else notes.strip(),
            tags=before.tags
            if tags is None
            else tuple(dict.fromkeys(tag.strip() for tag in tags if tag.strip())),
        )
        if problems := tuple(_problems(about)):
            raise SpecError(*problems)
        write_json(home.runs / run_id / "about.json", asdict(about))
        home.touch()
    return read(home, run_id)


def delete(home: Home, run_id: str) -> None:
    """Moves a run, with all it made, to the trash. Raises RunNotFound, or SpecError while it is active."""
    with locked(home):
        run = read(home, run_id)
        if run.is_active:
            raise SpecError(Problem("run", f"{run_id} is {run.state}", "stop it first"))
        home.trash.mkdir(mode=0o700, exist_ok=True)
        run.folder.rename(home.trash / run_id)


def restore(home: Home, run_id: str) -> Run:
    """Brings a deleted run back. Raises RunNotFound, or SpecError if another has its name."""
    with locked(home):
        folder = home.trash / run_id
        if not RUN_ID.fullmatch(run_id) or folder.is_symlink() or not folder.is_dir():
            in_trash = ", ".join(deleted(home)) or "no runs"
            raise RunNotFound(
                Problem("run", f"{run_id!r} is not in the trash", f"the trash holds {in_trash}")
            )
        if (home.runs / run_id).exists():
            raise SpecError(Problem("run", f"there is another {run_id}", "delete that one first"))
        folder.rename(home.runs / run_id)
    return read(home, run_id)


def deleted(home: Home) -> tuple[str, ...]:
    """The ids of the runs in the trash."""
    return tuple(
        sorted(
            path.name for path in home.trash.glob("*") if path.is_dir() and not path.is_symlink()
        )
    )


def empty_trash(home: Home) -> int:
    """Removes what was deleted, for good, and what was left of that by a program that died meanwhile.

    Returns how many bytes that freed.
    """
    grave = home.path / f".trash.{secrets.token_hex(4)}"
    with locked(home):
        home.trash.mkdir(mode=0o700, exist_ok=True)
        home.trash.rename(grave)  # the lock is not kept for as long as the removal takes
    graves = [grave, *(left for left in home.path.glob(".trash.*") if left != grave)]
    freed = sum(map(_bytes_below, graves))
    for each in graves:
        shutil.rmtree(each, ignore_errors=each != grave)  # removes links, never what they point to
    return freed


def disk_bytes(run: Run) -> int:
    """What a run takes on the disk; counted again only when something in its folder was made or replaced."""
    folders = (run.folder, run.folder / "checkpoints", run.folder / "output")
    return _bytes_at(
        run.folder, tuple(folder.stat().st_mtime_ns for folder in folders if folder.exists())
    )


@lru_cache(maxsize=20_000)
def _bytes_at(folder: Path, _times: tuple[int, ...]) -> int:
    return _bytes_below(folder)


def _bytes_below(folder: Path) -> int:
    total = 0
    for inner, _, names in os.walk(folder):  # does not follow links
        total += sum(_size(os.path.join(inner, name)) for name in names)  # noqa: PTH118, many thousand files
    return total


def _size(path: str) -> int:
    try:
        return os.lstat(path).st_size
    except OSError:
        return 0  # removed meanwhile


def _problems(about: About) -> Iterator[Problem]:
    notes = re.sub(r"[\n\t]", " ", about.notes)
    for name, text in (
        ("title", about.title),
        ("notes", notes),
        *(("tag", tag) for tag in about.tags),
    ):
        if len(text) > MOST_CHARACTERS[name]:
            yield Problem(
                name, f"has {len(text):,} characters", f"use at most {MOST_CHARACTERS[name]:,}"
            )
        if bad := next(filter(_is_treacherous, text), None):
            yield Problem(name, f"holds the invisible character U+{ord(bad):04X}", "remove it")
    if len(about.tags) > MOST_TAGS:
        yield Problem("tags", f"there are {len(about.tags)}", f"use at most {MOST_TAGS}")


def _is_treacherous(character: str) -> bool:
    return (
        unicodedata.category(character) in ("Cc", "Cs")
        or unicodedata.bidirectional(character) in REORDERING
    )
