"""Temporary folder of a serving process. What a process that was killed left behind is removed by
the next one."""

import json
import os
import secrets
import shutil
import socket
import time
from pathlib import Path
from typing import Final

from core.device import identify, is_alive
from core.training.contract.files import write_json
from core.training.contract.process_id import ProcessId

OWNER: Final = "process.json"
SECONDS_TO_BEGIN: Final = 3600
"""A folder without an owner may be one that is just being made."""
SECONDS_ELSEWHERE: Final = 7 * 86_400
"""No process of another machine that shares the home can be seen, so its folder is kept longer."""


def make_scratch(temporary: Path) -> Path:
    """Remove the folders of ended processes, and create one for this process. Raises OSError."""
    temporary.mkdir(mode=0o700, exist_ok=True)
    for path in temporary.iterdir():
        if _is_left_behind(path):
            remove_scratch(path)
    folder = temporary / f"page-{secrets.token_hex(6)}"
    folder.mkdir(mode=0o700)
    process = identify(os.getpid())
    fields = process.to_json() if process else {}
    write_json(folder / OWNER, fields | {"host": socket.gethostname()})
    return folder


def remove_scratch(path: Path) -> None:
    """Remove a folder or a file as far as possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _is_left_behind(path: Path) -> bool:
    age = time.time() - path.lstat().st_mtime
    fields = _owner(path)
    process = ProcessId.from_json(fields)
    if process is None:
        return age > SECONDS_TO_BEGIN
    if fields.get("host") != socket.gethostname():
        return age > SECONDS_ELSEWHERE
    return not is_alive(process)


def _owner(folder: Path) -> dict[str, object]:
    """Return who made a folder, {} if that is not known."""
    try:
        fields = json.loads((folder / OWNER).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}
