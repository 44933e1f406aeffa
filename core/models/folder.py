"""Read a model's folder: config files, weight headers and tokenizer. Refuses what could run code or
cannot be used; never loads a model."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from core.job import Cure, ModelNotFound, Problem
from core.models.architectures import is_native, problem_with
from core.models.shapes import shown_value
from core.training.contract.typed_json import KeyTwice, with_each_key_once
from core.training.contract.weights.files import (
    INDEX,
    PICKLE_SUFFIXES,
    WEIGHTS,
    NoWeights,
    Tensors,
    UnusableWeights,
    header_of,
    require_no_pointer,
    stored_tensors,
    weight_files,
)

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
GENERATION_CONFIG = "generation_config.json"
CONFIG_FILES = (
    "config.json",
    GENERATION_CONFIG,
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
)
MAX_CONFIG_BYTES = 16 * 2**20
"""Larger than any config file; a larger one is broken or hostile."""
MAX_TOKENIZER_BYTES = 256 * 2**20
ADAPTER_CONFIG = "adapter_config.json"
BASE_NAME = re.compile(r"[^\x00-\x1f\x7f-\x9f]{1,1000}")
"""Name or path of a model that an adapter was trained over."""
TOKENIZER = "tokenizer.json"
SENTENCEPIECE_MODEL = "tokenizer.model"
SENTENCEPIECE_PACKAGES: Mapping[str, str] = {
    "sentencepiece": "sentencepiece",
    "google.protobuf": "protobuf",
}
"""Module -> package that reading tokenizer.model needs."""
SENTENCEPIECE_BEGIN = b"\n"
"""First field of SentencePiece's protocol buffer: a piece."""
TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")
"""Token in base64 and its rank: what tokenizer.model holds for some models."""
SAMPLE_BYTES = 1024
TOKENIZER_FILES = frozenset(
    {
        TOKENIZER,
        SENTENCEPIECE_MODEL,
        "vocab.json",
        "vocab.txt",
        "spiece.model",
        "sentencepiece.bpe.model",
        "tekken.json",
        "tiktoken.model",
    }
)
"""Files of which transformers can make a tokenizer; each of them alone may be enough."""
POINTER_FILES = (*CONFIG_FILES, TOKENIZER, SENTENCEPIECE_MODEL, INDEX, WEIGHTS)
"""Files that may be pointers of Git LFS in a clone without it."""


@dataclass(frozen=True)
class ModelFolder:
    """Files of a model, as far as they were read."""

    config: Mapping[str, object]
    tensors: Tensors | None = field(repr=False)
    """None if there are no weights, or not all of them yet."""
    num_tokens: int | None
    """Tokens that the tokenizer knows; None if tokenizer.json is not there."""
    has_tokenizer: bool = True
    """False if there is no file of which a tokenizer could be made."""


def read_folder(reference: str, folder: Path) -> ModelFolder:
    """Read the folder of a model on this machine. Raises ModelNotFound."""
    try:
        files = {path.name: path for path in folder.iterdir() if path.is_file()}
        links = [path.name for path in folder.iterdir() if path.is_symlink() and not path.exists()]
    except OSError as error:
        problem = f"{reference} cannot be read: {error.strerror}"
        raise not_found(problem, "check its permissions") from None
    if links:
        problem = f"{reference}: {links[0]} is a link to a file that is gone"
        raise not_found(problem, "download the model again")
    for name in POINTER_FILES:
        if name in files:
            _use(reference, require_no_pointer, files[name])
    if "config.json" not in files:
        raise _no_config(reference, files)
    configs = {name: read_config(reference, files[name]) for name in CONFIG_FILES if name in files}
    _require_no_code(reference, configs, TOKENIZER in files)
    config = configs["config.json"]
    _require_trainable(reference, config)
    _require_sound_ids(reference, configs.get(GENERATION_CONFIG, {}))
    if config.get("transformers_weights") not in (None, WEIGHTS, INDEX):
        problem = f"config.json of {reference} names weight files of its own (transformers_weights)"
        raise not_found(problem, "choose a model without it")
    try:
        tensors = stored_tensors(folder)
    except NoWeights:
        tensors = None
    except UnusableWeights as error:
        raise not_found(f"{reference}: {error.problem}", error.fix) from None
    _require_tokenizer_packages(reference, files)
    has_tokenizer = any(name in TOKENIZER_FILES or name.endswith(".tiktoken") for name in files)
    num_tokens = _num_tokens(reference, files.get(TOKENIZER))
    return ModelFolder(config, tensors, num_tokens, has_tokenizer)


def read_download(reference: str, config_path: Path) -> ModelFolder:
    """Read what the Hub's cache holds of a model; the training downloads the rest.

    Raises ModelNotFound.
    """
    folder = config_path.parent
    config = read_config(reference, config_path)
    _require_no_code(reference, {config_path.name: config}, has_fast_tokenizer=True)
    _require_trainable(reference, config)
    try:
        files = weight_files(folder, may_be_incomplete=True)
        tensors = {name: each for path in files for name, each in header_of(path).items()}
        is_complete = bool(files) and files == weight_files(folder)
    except UnusableWeights as error:
        raise not_found(f"{reference}: {error.problem}", error.fix) from None
    tokenizer = folder / TOKENIZER
    num_tokens = _num_tokens(reference, tokenizer if tokenizer.is_file() else None)
    return ModelFolder(config, tensors if is_complete else None, num_tokens)


def not_found(problem: str, fix: str) -> ModelNotFound:
    """Return the error of a model that cannot be used."""
    return ModelNotFound(Problem("model", problem, fix))


def read_config(reference: str, path: Path) -> Mapping[str, object]:
    """Read a JSON file of a model. Refuse values that libraries would look code up with."""
    fix = "download the model again, or choose another"
    try:
        with path.open("rb") as file:
            text = file.read(MAX_CONFIG_BYTES).decode()
        config = json.loads(text, object_pairs_hook=with_each_key_once)
    except KeyTwice as error:
        problem = f"{path.name} of {reference} has the key {error.key!r} twice"
        raise not_found(problem, "remove one of them") from None
    except (OSError, ValueError, RecursionError):  # missing, not JSON, cut off, nested too deep
        raise not_found(f"{path.name} is not a readable JSON file in UTF-8", fix) from None
    if not isinstance(config, dict):
        raise not_found(f"{path.name} holds a {type(config).__name__}, not an object", fix)
    for key, value in _items_at_any_depth(config):
        if key in NAME_KEYS and not _are_safe_names(value):
            problem = f"{path.name} of {reference} has an unsafe value under {key}"
            raise not_found(problem, "choose another model")
    return config


def _require_no_code(
    reference: str, configs: Mapping[str, Mapping[str, object]], has_fast_tokenizer: bool
) -> None:
    """Refuse a model that needs code of its own.

    `auto_map` alone does no harm where transformers has the classes itself: no code is trusted.
    """
    has_classes = is_native(configs["config.json"].get("model_type"))
    for name, config in configs.items():
        for key, value in _items_at_any_depth(config):
            is_extra = key == "auto_map" and has_classes and has_fast_tokenizer
            if key in REMOTE_CODE_KEYS and value and not is_extra:
                problem = f"{name} of {reference} needs code of its own ({key})"
                raise not_found(problem, "choose a model without it")


def _require_trainable(reference: str, config: Mapping[str, object]) -> None:
    problem = problem_with(reference, config)
    if problem:
        raise ModelNotFound(problem)


def _no_config(reference: str, files: Mapping[str, Path]) -> ModelNotFound:
    """Return what a folder without config.json is."""
    if ADAPTER_CONFIG in files:
        return adapter_as_model(reference, files[ADAPTER_CONFIG])
    suffixes = {path.suffix for path in files.values()}
    if ".gguf" in suffixes:
        problem = f"{reference} holds GGUF files only, which are for running a model"
        return not_found(problem, "choose the model in safetensors that they were made of")
    if suffixes & PICKLE_SUFFIXES and ".safetensors" not in suffixes:
        problem = f"{reference} has pickle weights only; weights must be safetensors"
        return not_found(problem, "give a folder written by save_pretrained")
    return not_found(f"{reference} has no config.json", "give a folder written by save_pretrained")


def adapter_as_model(reference: str, settings: Path) -> ModelNotFound:
    """Return what to choose instead of an adapter: its base as model, and it as adapter."""
    base = read_config(reference, settings).get("base_model_name_or_path")
    if not isinstance(base, str) or not BASE_NAME.fullmatch(base):
        problem = f"{reference} is an adapter over a model that it does not name"
        return not_found(problem, "choose its base as model and this as adapter")
    change = {"model": base, "adapter": str(settings.parent)}
    problem = f"{reference} is an adapter over {base}"
    fix = f"choose {base} as model and this as adapter"
    cure = Cure(f"Choose {Path(base).name} as model and this as adapter", change)
    return ModelNotFound(Problem("model", problem, fix, cure))


def _use(reference: str, check: object, path: Path) -> None:
    try:
        check(path)  # type: ignore[operator]
    except UnusableWeights as error:
        raise not_found(f"{reference}: {error.problem}", error.fix) from None


def _require_tokenizer_packages(reference: str, files: Mapping[str, Path]) -> None:
    if TOKENIZER in files or SENTENCEPIECE_MODEL not in files:
        return
    with files[SENTENCEPIECE_MODEL].open("rb") as file:
        begin = file.read(SAMPLE_BYTES)
    if not begin.startswith(SENTENCEPIECE_BEGIN) and not TIKTOKEN_LINE.match(begin):
        problem = f"{SENTENCEPIECE_MODEL} of {reference} is damaged: it describes no tokenizer"
        raise not_found(problem, "download the model again, or choose another")
    missing = [
        package for module, package in SENTENCEPIECE_PACKAGES.items() if not _has_module(module)
    ]
    if missing:
        problem = f"{reference} has its tokenizer in {SENTENCEPIECE_MODEL} only, which needs "
        problem += f"{' and '.join(missing)} to be read"
        raise not_found(problem, f"pip install {' '.join(missing)}")


def _has_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # the package around it is missing
        return False


def _require_sound_ids(reference: str, generation: Mapping[str, object]) -> None:
    """Refuse settings of generation whose tokens are no whole numbers."""
    for key, value in generation.items():
        ids = value if isinstance(value, list) else [value]
        if key.endswith("_token_id") and not all(each is None or type(each) is int for each in ids):
            problem = f"{GENERATION_CONFIG} of {reference}: {key} is {shown_value(value)}"
            raise not_found(f"{problem}; it must be a whole number", f"repair it, or remove {key}")


def _num_tokens(reference: str, path: Path | None) -> int | None:
    """Return the number of tokens of a tokenizer.json. Raises ModelNotFound if it is damaged."""
    if path is None:
        return None
    stat = path.stat()
    try:
        return _tokens_in(path, stat.st_size, stat.st_mtime_ns)
    except ValueError:
        problem = f"{path.name} of {reference} is damaged: it describes no tokenizer"
        raise not_found(problem, "download the model again, or choose another") from None


@lru_cache(maxsize=64)  # such a file is large, and a form asks on every edit
def _tokens_in(path: Path, num_bytes: int, _modified: int) -> int | None:
    """Return the number of tokens in tokenizer.json, added ones included; None if it is unclear.

    Raises ValueError for a file that holds no tokenizer.
    """
    if num_bytes > MAX_TOKENIZER_BYTES:
        return None
    try:
        tokenizer = json.loads(path.read_bytes().decode())
    except OSError:
        return None
    except RecursionError:
        raise ValueError from None
    if not isinstance(tokenizer, dict) or not isinstance(tokenizer.get("model"), dict):
        raise ValueError
    try:
        vocabulary, added = tokenizer["model"]["vocab"], tokenizer.get("added_tokens") or []
        if isinstance(vocabulary, dict):
            known = set(vocabulary)
        else:  # Unigram: [token, score]
            known = {token for token, _score in vocabulary}
        return len(known | {token["content"] for token in added})
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


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
