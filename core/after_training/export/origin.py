"""Model that a line of trainings began with: its name, its folder, and the licence it brings."""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from core.models import DEMO_DIR
from core.runs import Run

MAX_TRAININGS = 20
"""Trainings after each other that are followed back."""
MAX_CARD_BYTES = 2**20
FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---", re.DOTALL)
LICENCE = re.compile(r"^(license|license_name):[ \t]*[\"']?([\w.-]{1,60})[\"']?[ \t]*$", re.M)


def base_name(run: Run) -> str:
    """Return the base as others know it: its id on the Hub, the id of the run that made it, or the
    name of its folder."""
    made_by = _run_folder_of(Path(run.job.model))
    return made_by.name if made_by else _name_of(run.job.model)


def origin_of(run: Run) -> str:
    """Return the model that was there before any training: a Hub id or a folder. A base that is the
    result of another run is followed back to the base of that run."""
    model = run.job.model
    for _training in range(MAX_TRAININGS):
        folder = _run_folder_of(Path(model))
        if folder is None:
            break
        model = str(json.loads((folder / "job.json").read_text(encoding="utf-8"))["model"])
    return model


def origin_name(run: Run) -> str:
    """Return the model before any training as others know it."""
    return _name_of(origin_of(run))


def origin_folder(run: Run) -> Path | None:
    """Return the folder of that model; None if it is not on this machine any more."""
    origin = origin_of(run)
    folder = Path(origin)
    if not folder.is_absolute():
        revision = run.job.revision if origin == run.job.model else "main"
        return cached(origin, revision)
    return folder if folder.is_dir() else None


def cached(model: str, revision: str) -> Path | None:
    """Return the folder of a Hub model in the cache."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(model, "config.json", revision=revision)
    except ValueError:  # no id of the Hub
        return None
    if isinstance(found, str):
        return Path(found).parent
    return None


def licence_in(folder: Path | None) -> Mapping[str, str]:
    """Return the licence that the model card in a folder names: {license, license_name}."""
    if folder is None:
        return {}
    try:
        with (folder / "README.md").open(encoding="utf-8", errors="replace") as file:
            head = FRONT_MATTER.match(file.read(MAX_CARD_BYTES))
    except OSError:
        return {}
    return dict(LICENCE.findall(head[1])) if head else {}


def _name_of(model: str) -> str:
    """Return a Hub id as it is, and the name of a folder."""
    folder = Path(model)
    if not folder.is_absolute():
        return model
    return "demo" if folder.parts[-3:] == DEMO_DIR.parts[-3:] else folder.name


def _run_folder_of(model: Path) -> Path | None:
    """Return the folder of the run that made a model: its result, a checkpoint or an export."""
    if not model.is_absolute():
        return None
    for folder in (model.parent, model.parent.parent):
        with suppress(OSError, ValueError, RecursionError):
            job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
            if isinstance(job, dict) and isinstance(job.get("model"), str):
                return folder
    return None
