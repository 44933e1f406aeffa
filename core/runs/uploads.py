"""The files that a person brought, and what was made of them: each in a folder of its own. Never changes one."""

import re
import secrets
import shutil
from pathlib import Path

from core.runs.home import Home
from core.training.contract.files import sha256_of

LONGEST_NAME = 60


def keep(home: Home, brought: Path, suffix: str) -> Path:
    """Moves a file to where its content has its place; brought twice, it is there once. Raises OSError."""
    digest = sha256_of(brought)[:12]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", brought.stem).strip(".-")[:LONGEST_NAME] or "data"
    place = home.uploads / digest / f"{name}{suffix}"
    place.parent.mkdir(exist_ok=True)
    shutil.move(brought, place)
    return place


def new_folder(home: Home) -> Path:
    """A folder for what is made of a file. Raises OSError."""
    folder = home.uploads / secrets.token_hex(6)
    folder.mkdir()
    return folder


def kept_rows(home: Home, at_most: int) -> tuple[Path, ...]:
    """The files of rows that are there, the newest first."""
    found = [
        (path.stat().st_mtime, path) for path in home.uploads.glob("*/*.jsonl") if path.is_file()
    ]
    return tuple(path for _when, path in sorted(found, reverse=True)[:at_most])
