"""Changes that users make to runs: annotate, delete, restore, empty the trash.

Nothing here reaches outside the home folder or follows a link.
"""

import re
import secrets
import shutil
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace

from core.job import Problem, RunNotFound, SpecError
from core.runs.files import read_json
from core.runs.home import Home, locked
from core.runs.records import Annotations
from core.runs.run import RUN_ID, Run, read
from core.runs.states import active_problem, infer_state
from core.training.contract.checkpoint_files import bytes_in
from core.training.contract.files import write_json
from core.training.contract.status import ACTIVE, Status

MAX_CHARACTERS = {"title": 120, "notes": 10_000, "tag": 40}
MAX_TAGS = 20
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
    """Set the title, notes or tags of a run; None keeps the old ones.

    Raises RunNotFound, SpecError with every problem.
    """
    with locked(home):
        about = read(home, run_id).about
        if title is not None:
            about = replace(about, title=title.strip())
        if notes is not None:
            about = replace(about, notes=notes.strip())
        if tags is not None:
            stripped = filter(None, (tag.strip() for tag in tags))
            about = replace(about, tags=tuple(dict.fromkeys(stripped)))
        if problems := tuple(_problems(about)):
            raise SpecError(*problems)
        write_json(home.runs / run_id / "about.json", asdict(about))
        home.touch()
    return read(home, run_id)


def delete(home: Home, run_id: str) -> None:
    """Move a run to the trash. Raises RunNotFound, SpecError if it is active."""
    with locked(home):
        require_ended(home, run_id)
        home.trash.mkdir(mode=0o700, exist_ok=True)
        (home.runs / run_id).rename(home.trash / run_id)


def require_ended(home: Home, run_id: str) -> None:
    """Raise RunNotFound, or SpecError if a run is active. Its job need not be readable."""
    folder = home.runs / run_id
    try:
        state = read(home, run_id).state
    except SpecError:
        status = Status.from_json(read_json(folder / "status.json"))
        state = infer_state(folder, status, created=0.0).state
    if state in ACTIVE:
        raise SpecError(active_problem(folder, state))


def restore(home: Home, run_id: str) -> Run:
    """Move a run out of the trash. Raises RunNotFound, SpecError if another run has its id."""
    with locked(home):
        folder = home.trash / run_id
        if not RUN_ID.fullmatch(run_id) or folder.is_symlink() or not folder.is_dir():
            in_trash = ", ".join(deleted(home)) or "no runs"
            fix = f"the trash holds {in_trash}"
            raise RunNotFound(Problem("run", f"{run_id!r} is not in the trash", fix))
        if (home.runs / run_id).exists():
            raise SpecError(Problem("run", f"there is another {run_id}", "delete that one first"))
        folder.rename(home.runs / run_id)
    return read(home, run_id)


def deleted(home: Home) -> tuple[str, ...]:
    """Return the ids of the runs in the trash."""
    folders = (path for path in home.trash.glob("*") if path.is_dir() and not path.is_symlink())
    return tuple(sorted(path.name for path in folders))


def empty_trash(home: Home) -> int:
    """Remove the deleted runs for good. Return the number of bytes that this frees."""
    removed = home.path / f".trash.{secrets.token_hex(4)}"
    with locked(home):  # only for the renaming, because the removal may take long
        home.trash.mkdir(mode=0o700, exist_ok=True)
        home.trash.rename(removed)
    left_by_dead_programs = [path for path in home.path.glob(".trash.*") if path != removed]
    num_bytes = 0
    for folder in (removed, *left_by_dead_programs):
        num_bytes += bytes_in(folder)
        # rmtree removes links, never what they point to
        shutil.rmtree(folder, ignore_errors=folder != removed)
    return num_bytes


def _problems(about: Annotations) -> Iterator[Problem]:
    notes = re.sub(r"[\n\t]", " ", about.notes)
    texts = [("title", about.title), ("notes", notes), *(("tag", tag) for tag in about.tags)]
    for name, text in texts:
        limit = MAX_CHARACTERS[name]
        if len(text) > limit:
            yield Problem(name, f"has {len(text):,} characters", f"use at most {limit:,}")
        for character in filter(_is_invisible, text):
            code = f"U+{ord(character):04X}"
            yield Problem(name, f"holds the invisible character {code}", "remove it")
            break
    if len(about.tags) > MAX_TAGS:
        yield Problem("tags", f"there are {len(about.tags)}", f"use at most {MAX_TAGS}")


def _is_invisible(character: str) -> bool:
    is_control = unicodedata.category(character) in ("Cc", "Cs")
    return is_control or unicodedata.bidirectional(character) in REORDERING
