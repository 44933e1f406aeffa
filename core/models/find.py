"""find_model: a base model from a preset, a folder or the Hugging Face Hub.

Reads config files and refuses those that could run code; never loads weights.
"""

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache, lru_cache
from pathlib import Path

from core.job import ModelNotFound, Problem, UnknownArchitecture
from core.models.presets import PRESETS_DIR, ModelPreset, models
from core.models.shapes import ModelShape

DEMO_DIR = PRESETS_DIR / "demo" / "model"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
SAFE_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
NAME_KEYS = {
    "model_type",
    "architectures",
    "dtype",
    "torch_dtype",
    "attn_implementation",
    "_attn_implementation",
    "quant_method",
}
"""Keys whose values libraries use to look up code."""
REMOTE_CODE_KEYS = {"auto_map", "trust_remote_code"}
CONFIG_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
)
PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".ckpt"}
HUB_TIMEOUT_SECONDS = 3
HUB_RETRY_SECONDS = 30
"""A Hub that did not answer is asked again after this long."""
MAX_CONFIG_BYTES = 16 * 2**20
"""Larger than any config file; a larger one is broken or hostile."""
OFFLINE = ("is not downloaded and the Hub cannot be reached", "go online once, or give a folder")
NO_REVISION = ("has no revision {revision!r}", "give a branch, tag or commit that it has")


@dataclass(frozen=True)
class ModelSource:
    """Base model that was found."""

    reference: str
    """As the user wrote it; of a preset, its id."""
    location: str
    """Hub id or absolute path of a folder, as from_pretrained takes it."""
    title: str
    shape: ModelShape | None
    """None for an unknown architecture: it can train, but has no estimate."""
    num_parameters: int | None
    is_local: bool
    """True for a folder on this machine."""
    config: Mapping[str, object] = field(repr=False, hash=False)
    """Content of config.json; of a preset, the keys that determine its shape."""


def find_model(reference: str, revision: str = "main") -> ModelSource:
    """Find `demo`, a preset by id or name ("llama 3.1 8b"), the path of a folder, or a Hub id.

    Presets are read offline. The config.json of a Hub id comes from the Hub's cache or, with the
    user's token, from the Hub. Raises ModelNotFound.
    """
    if reference == "demo":
        return _in_folder(reference, DEMO_DIR, "Demo model")
    if reference.startswith((".", "~")) or Path(reference).is_absolute():
        folder = _folder(reference)
        return _in_folder(reference, folder, folder.name)
    if preset := models().get(reference) or _presets_by_name().get(_normalized(reference)):
        return ModelSource(
            reference=preset.id,
            location=preset.id,
            title=preset.name,
            shape=preset.shape,
            num_parameters=preset.num_parameters,
            is_local=False,
            config=preset.config,
        )
    if HUB_ID.fullmatch(reference):
        config = _read_config(reference, hub_config_path(reference, revision))
        return _source(reference, reference, reference, config, is_local=False)
    fix = "choose a preset, or give owner/name, or a path such as ./model"
    if similar := _similar_presets(reference):
        fix = f"did you mean {' or '.join(similar)}?"
    raise _not_found(f"{reference!r} is not a preset, a folder or a Hub id", fix)


def _not_found(problem: str, fix: str) -> ModelNotFound:
    return ModelNotFound(Problem("model", problem, fix))


@cache
def _presets_by_name() -> Mapping[str, ModelPreset]:
    """Return presets by everything that users may call them: name, id, id without its owner."""
    found = {}
    for preset in reversed(
        tuple(models().values())
    ):  # of two with one name, the first in the file wins
        for name in (preset.name, preset.id.rpartition("/")[2], preset.id):
            found[_normalized(name)] = preset
    return found


def _similar_presets(reference: str) -> Sequence[str]:
    """Return up to three presets whose names contain every word of it, or else look similar."""
    words = re.findall(r"[a-z]+|[0-9.]+", reference.lower())
    if words:
        matches = [
            preset.id
            for preset in models().values()
            if all(word in preset.name.lower() for word in words)
        ]
        if matches:
            return matches[:3]
    names = get_close_matches(_normalized(reference), _presets_by_name(), 3)
    return tuple(dict.fromkeys(_presets_by_name()[name].id for name in names))


def _normalized(name: str) -> str:
    """Return a name without the spaces, signs and capitals that users write differently."""
    return re.sub(r"[^a-z0-9./]", "", name.lower())


def _folder(reference: str) -> Path:
    try:
        folder = Path(reference).expanduser().resolve()
        if folder.is_dir():
            return folder
    except (OSError, RuntimeError, ValueError):  # unknown user, circular links, null byte
        pass
    fix = "give the folder that contains config.json and the weights"
    raise _not_found(f"there is no folder {reference!r}", fix)


def _in_folder(reference: str, folder: Path, title: str) -> ModelSource:
    """Return the model in a folder. Its weights are neither opened nor needed."""
    try:
        files = {path.name: path for path in folder.iterdir() if path.is_file()}
    except OSError as error:
        problem = f"{reference} cannot be read: {error.strerror}"
        raise _not_found(problem, "check its permissions") from None
    if "config.json" not in files:
        raise _not_found(
            f"{reference} has no config.json", "give a folder written by save_pretrained"
        )
    suffixes = {path.suffix for path in files.values()}
    if ".safetensors" not in suffixes and suffixes & PICKLE_SUFFIXES:
        raise _not_found(
            f"{reference} has pickle weights only; weights must be safetensors",
            "load it where you trust it and save it again with save_pretrained",
        )
    configs = {name: _read_config(reference, files[name]) for name in CONFIG_FILES if name in files}
    return _source(reference, str(folder), title, configs["config.json"], is_local=True)


def _source(
    reference: str, location: str, title: str, config: Mapping[str, object], is_local: bool
) -> ModelSource:
    shape = num_parameters = None
    try:
        shape = ModelShape.from_config(config)
        num_parameters = shape.num_parameters
    except UnknownArchitecture:
        pass
    except ValueError as error:
        fix = "repair its config.json, or choose another model"
        raise _not_found(f"{reference}: {error}", fix) from None
    return ModelSource(reference, location, title, shape, num_parameters, is_local, config)


def _read_config(reference: str, path: Path) -> Mapping[str, object]:
    """Read a JSON file of a model. Refuse settings that make a library run the model's own code."""
    fix = "download the model again, or choose another"
    try:
        with path.open("rb") as file:
            config = json.loads(file.read(MAX_CONFIG_BYTES))
    except (OSError, ValueError, RecursionError):  # missing, not JSON, cut off, nested too deep
        raise _not_found(f"{path.name} is not a readable JSON file", fix) from None
    if not isinstance(config, dict):
        raise _not_found(f"{path.name} holds a {type(config).__name__}, not an object", fix)
    for key, value in _items_at_any_depth(config):
        if key in REMOTE_CODE_KEYS and value:
            problem = f"{path.name} of {reference} needs code of its own ({key})"
            raise _not_found(problem, "choose a model without it")
        if key in NAME_KEYS and not _are_safe_names(value):
            problem = f"{path.name} of {reference} has an unsafe value under {key}"
            raise _not_found(problem, "choose another model")
    return config


def _are_safe_names(value: object) -> bool:
    """Return True for None, a safe name or a list of these."""
    values = value if isinstance(value, list) else [value]
    return all(
        each is None or (isinstance(each, str) and SAFE_NAME.fullmatch(each)) for each in values
    )


def _items_at_any_depth(config: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    pending: list[object] = [config]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            yield from item.items()
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)


@cache  # a form asks on every edit
def hub_config_path(repo_id: str, revision: str) -> Path:
    """Return the path of a Hub model's config.json, downloaded if it is not in the cache."""
    # slow to import, and only a Hub id needs it
    from huggingface_hub import errors, hf_hub_download, try_to_load_from_cache

    cached = try_to_load_from_cache(repo_id, "config.json", revision=revision)
    if isinstance(cached, str):
        return Path(cached)
    if not hub_answers(int(time.monotonic() / HUB_RETRY_SECONDS)):
        raise _not_found(f"{repo_id} {OFFLINE[0]}", OFFLINE[1])
    # the first match counts: a gated repository is also a repository that is not found
    failures: Mapping[type[Exception], tuple[str, str]] = {
        errors.GatedRepoError: (
            "is gated",
            "accept its licence on huggingface.co, then run `hf auth login`",
        ),
        errors.RepositoryNotFoundError: (
            "is not on the Hub",
            "check owner and name; a private one needs `hf auth login`",
        ),
        errors.RevisionResolutionError: NO_REVISION,
        errors.RevisionNotFoundError: NO_REVISION,
        errors.RemoteEntryNotFoundError: ("has no config.json", "choose a model for transformers"),
        errors.HFValidationError: ("is not a Hub id", "give owner/name"),
        errors.LocalEntryNotFoundError: OFFLINE,
        OSError: ("cannot be read from the Hub", "try again, or give a folder"),
    }
    try:
        return Path(hf_hub_download(repo_id, "config.json", revision=revision))
    except tuple(failures) as error:
        problem, fix = next(said for kind, said in failures.items() if isinstance(error, kind))
        raise _not_found(f"{repo_id} {problem.format(revision=revision)}", fix) from None


@lru_cache(maxsize=1)
def hub_answers(_period: int) -> bool:
    """Return False quickly where there is no network; a download would retry for half a minute.

    Cached for one period of HUB_RETRY_SECONDS, because a form asks on every edit.
    """
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT_SECONDS)
    except Exception:  # any failure of any HTTP library means "no answer"
        return False
    return True
