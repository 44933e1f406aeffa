"""Where a base model comes from: a preset, a folder or the Hugging Face Hub. Reads config.json; never loads weights."""

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache, lru_cache
from pathlib import Path

from core.job import ModelNotFound, Problem, UnknownArchitecture
from core.models.presets import PRESETS_DIR, BaseModel, models
from core.models.shapes import ModelShape

DEMO_DIR = PRESETS_DIR / "demo" / "model"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
SAFE_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
NAMES = (
    "model_type",
    "architectures",
    "dtype",
    "torch_dtype",
    "attn_implementation",
    "_attn_implementation",
    "quant_method",
)
"""Keys whose values other programs use as names of code."""
REMOTE_CODE_KEYS = ("auto_map", "trust_remote_code")
CONFIG_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
)
PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".ckpt"}
SECONDS_FOR_THE_HUB = 3
SECONDS_OF_SILENCE = 30
"""How long a Hub that did not answer is not asked again."""
MAX_CONFIG_BYTES = 16 * 2**20
"""Above the size of every settings file; more is a broken or hostile one."""


@dataclass(frozen=True)
class ModelSource:
    """A base model that was found."""

    reference: str
    """As it was asked for; of a preset, its id."""
    location: str
    """Hub id or absolute path of a folder: what from_pretrained takes."""
    title: str
    shape: ModelShape | None
    """None if its architecture is not known here: no estimate, but it may train."""
    num_parameters: int | None
    is_local: bool
    """True for a folder on this machine."""
    config: Mapping[str, object] = field(repr=False, hash=False)
    """What its config.json says; of a preset, what bears on its shape."""


def find_model(reference: str, revision: str = "main") -> ModelSource:
    """The model behind `demo`, a preset (its id, or its name: "llama 3.1 8b"), the path of a folder, or a Hub id.

    Presets are read offline. A Hub id reads config.json of `revision` from the Hub's cache or, with the user's token,
    from the Hub. Raises ModelNotFound.
    """
    if reference == "demo":
        return _in_folder(reference, DEMO_DIR, "Demo model")
    if _is_path(reference):
        folder = _folder(reference)
        return _in_folder(reference, folder, folder.name)
    if preset := models().get(reference) or _by_name().get(_plain(reference)):
        return ModelSource(
            preset.id,
            preset.id,
            preset.name,
            preset.shape,
            preset.num_parameters,
            False,
            preset.config,
        )
    if HUB_ID.fullmatch(reference):
        config = _checked(
            reference, "config.json", _read_config(_hub_config_path(reference, revision))
        )
        return _described(reference, reference, reference, config, is_local=False)
    close = " or ".join(_close_presets(reference))
    fix = (
        f"did you mean {close}?"
        if close
        else "choose a preset, or give owner/name, or a path such as ./model"
    )
    raise _unusable(f"{reference!r} is not a preset, a folder or a Hub id", fix)


def _unusable(problem: str, fix: str) -> ModelNotFound:
    return ModelNotFound(Problem("model", problem, fix))


@cache
def _by_name() -> Mapping[str, BaseModel]:
    """Presets by all that a person may call them: the id, what follows its owner, and the name."""
    return {
        _plain(called): preset
        for preset in reversed(tuple(models().values()))
        for called in (preset.name, preset.id.rpartition("/")[2], preset.id)
    }


def _close_presets(reference: str) -> Sequence[str]:
    """Up to three presets whose names hold every word of it, or else are much like it."""
    words = re.findall(r"[a-z]+|[0-9.]+", reference.lower())
    names = {preset.id: preset.name.lower() for preset in models().values()}
    holding = [id for id, name in names.items() if words and all(word in name for word in words)]
    alike = [_by_name()[name].id for name in get_close_matches(_plain(reference), _by_name(), 3)]
    return holding[:3] or tuple(dict.fromkeys(alike))


def _plain(name: str) -> str:
    """A name without what people leave out or write otherwise; the owner of a Hub id stays one."""
    return re.sub(r"[^a-z0-9./]", "", name.lower())


def _is_path(reference: str) -> bool:
    return reference.startswith((".", "~")) or Path(reference).is_absolute()


def _folder(reference: str) -> Path:
    """The folder of that path, made absolute."""
    try:
        folder = Path(reference).expanduser().resolve()
        if folder.is_dir():
            return folder
    except (OSError, RuntimeError, ValueError):  # no such user, a loop of links, a null byte
        pass
    raise _unusable(
        f"there is no folder {reference!r}",
        "give the folder that holds config.json and the weights",
    )


def _in_folder(reference: str, folder: Path, title: str) -> ModelSource:
    """The model in a folder, whose weights are neither opened nor needed."""
    files = _files(reference, folder)
    suffixes = {path.suffix for path in files.values()}
    if "config.json" not in files:
        raise _unusable(
            f"{reference} has no config.json", "give a folder written by save_pretrained"
        )
    if ".safetensors" not in suffixes and suffixes & PICKLE_SUFFIXES:
        raise _unusable(
            f"{reference} has pickle weights only; weights must be safetensors",
            "load it where you trust it and save it again with save_pretrained",
        )
    read = {
        name: _checked(reference, name, _read_config(files[name]))
        for name in CONFIG_FILES
        if name in files
    }
    return _described(reference, str(folder), title, read["config.json"], is_local=True)


def _files(reference: str, folder: Path) -> Mapping[str, Path]:
    """The regular files of a folder by name."""
    try:
        return {path.name: path for path in folder.iterdir() if path.is_file()}
    except OSError as error:
        raise _unusable(
            f"{reference} cannot be read: {error.strerror}", "check its permissions"
        ) from None


def _described(
    reference: str, location: str, title: str, config: Mapping[str, object], is_local: bool
) -> ModelSource:
    """What config.json says of a model."""
    try:
        shape = ModelShape.from_config(config)
    except UnknownArchitecture:
        return ModelSource(reference, location, title, None, None, is_local, config)
    except ValueError as error:
        raise _unusable(
            f"{reference}: {error}", "repair its config.json, or choose another model"
        ) from None
    return ModelSource(reference, location, title, shape, shape.num_parameters, is_local, config)


def _read_config(path: Path) -> Mapping[str, object]:
    """The object in a JSON file of a model."""
    fix = "download the model again, or choose another"
    try:
        with path.open("rb") as file:
            config = json.loads(file.read(MAX_CONFIG_BYTES))
    except (
        OSError,
        ValueError,
        RecursionError,
    ):  # no such file, not JSON or cut off, nested too deep
        raise _unusable(f"{path.name} is not a readable JSON file", fix) from None
    if not isinstance(config, dict):
        raise _unusable(f"{path.name} holds a {type(config).__name__}, not an object", fix)
    return config


def _checked(reference: str, name: str, config: Mapping[str, object]) -> Mapping[str, object]:
    """The same settings, if nothing in them could make a program run code of the model's own."""
    for key, value in _walk(config):
        if key in REMOTE_CODE_KEYS and value:
            raise _unusable(
                f"{name} of {reference} asks for code of its own ({key})",
                "choose a model without it",
            )
        if key in NAMES and not all(
            _is_safe_name(each) for each in (value if isinstance(value, list) else [value])
        ):
            raise _unusable(
                f"{name} of {reference} has an unsafe value under {key}", "choose another model"
            )
    return config


def _is_safe_name(value: object) -> bool:
    return value is None or (isinstance(value, str) and SAFE_NAME.fullmatch(value) is not None)


def _walk(config: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Every key and its value, at any depth."""
    pending: list[object] = [config]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            yield from item.items()
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)


@cache
def _hub_config_path(repo_id: str, revision: str) -> Path:
    """config.json of a Hub model, from the cache or else the Hub; asked for once, since a form asks on every edit."""
    from huggingface_hub import (
        errors,
        hf_hub_download,
        try_to_load_from_cache,
    )  # slow, and only a Hub id needs it

    if isinstance(kept := try_to_load_from_cache(repo_id, "config.json", revision=revision), str):
        return Path(kept)
    if not _hub_answers(int(time.monotonic() / SECONDS_OF_SILENCE)):
        raise _unusable(
            f"{repo_id} is not downloaded and the Hub cannot be reached",
            "go online once, or give a folder",
        )

    failures = (  # the first that fits: a gated repository also counts as one that is not found
        (
            errors.GatedRepoError,
            "is gated",
            "accept its licence on huggingface.co, then run `hf auth login`",
        ),
        (
            errors.RepositoryNotFoundError,
            "is not on the Hub",
            "check owner and name; a private one needs `hf auth login`",
        ),
        (
            errors.RevisionResolutionError,
            f"has no revision {revision!r}",
            "give a branch, tag or commit it has",
        ),
        (
            errors.RevisionNotFoundError,
            f"has no revision {revision!r}",
            "give a branch, tag or commit it has",
        ),
        (errors.RemoteEntryNotFoundError, "has no config.json", "choose a model for transformers"),
        (errors.HFValidationError, "is not a Hub id", "give owner/name"),
        (
            errors.LocalEntryNotFoundError,
            "is not downloaded and the Hub cannot be reached",
            "go online once, or give a folder",
        ),
        (OSError, "cannot be read from the Hub", "try again, or give a folder"),
    )
    try:
        return Path(hf_hub_download(repo_id, "config.json", revision=revision))
    except tuple(kind for kind, _, _ in failures) as error:
        problem, fix = next(
            (problem, fix) for kind, problem, fix in failures if isinstance(error, kind)
        )
        raise _unusable(f"{repo_id} {problem}", fix) from None


@lru_cache(maxsize=1)
def _hub_answers(_moment: int) -> bool:
    """False soon where there is no network: a download would try again for half a minute before it says so.

    Asked once a moment, since a form asks on every edit.
    """
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS_FOR_THE_HUB)
    except (
        Exception
    ):  # whichever HTTP library the Hub's client is built on, its every failure means "no answer"
        return False
    return True
