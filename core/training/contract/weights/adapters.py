"""LoRA adapters as files: their settings by a closed schema, held against their own tensors.

No pattern of adapter_config.json is ever run: layers come from plain names or from the tensors.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..typed_json import KeyTwice, with_each_key_once
from .adapter_schema import SCHEMA
from .files import FLOAT_TYPES, Tensors, UnusableWeights, header_of, require_no_pointer

SETTINGS = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
MAX_SETTINGS_BYTES = 4 * 2**20
PREFIX = "base_model.model."
"""Beginning of the names of all tensors of an adapter."""
MATRIX = re.compile(
    r"base_model\.model\.(?P<module>[\w.-]{1,400})\.lora_(?P<side>[AB])\.weight", re.ASCII
)
MAGNITUDE = re.compile(
    r"base_model\.model\.(?P<module>[\w.-]{1,400})\.lora_magnitude_vector(\.weight)?", re.ASCII
)
"""Lengths of the rows of a layer, which DoRA trains beside the two matrices."""
CHANGES_BASE = frozenset({"pissa", "olora"})
"""Initializations of a job that move a part of the base into the adapter: it then fits no other
base."""
FITS_ANY_BASE = frozenset({"gaussian", "eva", "orthogonal", "loftq"})
"""Other initializations of PEFT after which an adapter fits the base as it is published."""
SCORE_HEADS = frozenset({"classifier", "score"})
"""Names that PEFT adds to modules_to_save of every adapter that scores, as two models call them."""
EMBEDDINGS = frozenset({"embed_tokens", "model.embed_tokens", "lm_head"})
WRAPPED = ".base_layer"
"""What PEFT adds to the name of a module each time that it wraps another of its parameters."""
EXPERTS = "experts"
"""Module of transformers that holds all experts of a layer in a few parameters."""
ANY_PARENT = ".*\\."
"""Beginning of the patterns that PEFT writes for experts, with a plain name behind it."""
MAX_SHOWN = 60
"""Characters of a wrong value that a message shows."""
RETRAIN = "train it again with plain settings, or leave adapter empty"
COPY_AGAIN = "copy both files of the adapter again"
MERGE = "merge it into its base where it was trained, and give the merged folder as model"


@dataclass(frozen=True)
class AdapterFiles:
    """Adapter whose settings and tensors agree."""

    folder: Path
    base: str
    """Model that it was trained over, as it names it."""
    revision: str
    settings: Mapping[str, object]
    """Settings that PEFT gets: checked, and without patterns."""
    modules: Mapping[str, tuple[int, int, int]]
    """Layer of the base -> (rank, numbers in, numbers out) of its adapter."""
    parameters: Mapping[str, tuple[int, int, int]]
    """Place of the matrices of a parameter that target_parameters names, such as all experts of a
    layer in one tensor -> (ranks of all experts together, numbers in, numbers out)."""
    saved: Mapping[str, tuple[int, ...]]
    """Tensor of the base -> sizes of the one that takes its place (modules_to_save)."""
    tensors: Tensors


KEPT = (
    "task_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "modules_to_save",
    "rank_pattern", "alpha_pattern", "ensure_weight_tying", "target_parameters",
)  # fmt: skip
"""Settings that are handed on to PEFT as they are."""


def read_adapter(place: Path) -> AdapterFiles:
    """Read the adapter in a folder or in the output of a run. Raises UnusableWeights."""
    folder = place if (place / SETTINGS).is_file() else place / "output"
    settings = _read_settings(place, folder)
    if not (folder / WEIGHTS).is_file():
        raise UnusableWeights(f"{folder} has no {WEIGHTS} with its settings", "give a run's output")
    tensors = header_of(folder / WEIGHTS)
    pairs = _pairs(tensors)
    modules = {name: sizes for name, sizes in pairs.items() if not _is_parameter(settings, name)}
    _require_ranks(settings, modules)
    _require_magnitudes(settings, modules, tensors)
    saved = _saved_tensors(settings, pairs, tensors)
    kept = {name: settings[name] for name in KEPT if settings.get(name) is not None}
    kept["target_modules"] = _target_modules(settings, modules)
    return AdapterFiles(
        folder,
        str(settings.get("base_model_name_or_path") or ""),
        str(settings.get("revision") or "main"),
        kept,
        modules,
        {name: sizes for name, sizes in pairs.items() if name not in modules},
        saved,
        tensors,
    )


def _read_settings(place: Path, folder: Path) -> Mapping[str, object]:
    path = folder / SETTINGS
    try:
        require_no_pointer(path)
        with path.open("rb") as file:
            text = file.read(MAX_SETTINGS_BYTES)
        known = json.loads(text, object_pairs_hook=with_each_key_once)
        is_object = isinstance(known, dict)
    except KeyTwice as error:
        problem = f"{SETTINGS} has the key {error.key!r} twice"
        raise UnusableWeights(problem, "remove one of them") from None
    except (OSError, ValueError, RecursionError):
        is_object = False
    if not is_object:
        problem = f"{place} holds no adapter that can be read"
        raise UnusableWeights(problem, "give a run's output")
    for name in ("rank_pattern", "alpha_pattern"):
        if isinstance(known.get(name), dict):
            known[name] = _with_plain_names(known[name])
    for name, value in known.items():
        check = SCHEMA.get(name)
        is_right = check(value) if check else not value
        if not is_right:
            shown = f"{name} is {json.dumps(value)[:MAX_SHOWN]}"
            raise UnusableWeights(f"{SETTINGS}: {shown}, which is not used here", RETRAIN)
    for name in ("peft_type", "r", "target_modules"):
        if known.get(name) is None:
            raise UnusableWeights(f"{SETTINGS} does not say {name}", RETRAIN)
    start = known.get("init_lora_weights")
    if isinstance(start, str) and start.lower() not in FITS_ANY_BASE:
        problem = "a checkpoint of this kind fits its own run only"
        raise UnusableWeights(problem, "give the run's output")
    if known.get("target_parameters"):
        _require_plain_lora(known)
    return known


def _with_plain_names(pattern: Mapping[str, object]) -> dict[str, object]:
    """Return a pattern with the names that PEFT has put into patterns of its own, as they are."""
    plain: dict[str, object] = {}
    for key, value in pattern.items():
        name = key.removeprefix(ANY_PARENT)
        plain.setdefault(name.replace("\\.", ".") if name != key else key, value)
    return plain


def _require_plain_lora(settings: Mapping[str, object]) -> None:
    """Raise UnusableWeights for what PEFT has for layers, but not for parameters."""
    for name in ("use_dora", "lora_dropout"):
        if settings.get(name):
            problem = f"{SETTINGS}: {name} is on beside target_parameters, which PEFT cannot load"
            raise UnusableWeights(problem, COPY_AGAIN)


def _is_parameter(settings: Mapping[str, object], module: str) -> bool:
    """Return True if matrices belong to parameters of a module, not to a linear layer.

    Their names end with the module of a parameter. One that is named without its module is that of
    the module that no name of a layer means.
    """
    targets = settings.get("target_parameters") or []
    assert isinstance(targets, list)
    if not targets:
        return False
    bare = module.replace(WRAPPED, "")
    parents = {str(target).rpartition(".")[0] for target in targets}
    if any(parent and _ends_with(bare, parent) for parent in parents):
        return True
    if "" not in parents:
        return False
    layers = settings["target_modules"]
    if isinstance(layers, list):
        return not any(_ends_with(bare, str(layer)) for layer in layers)
    return bare != module or bare.rpartition(".")[2] == EXPERTS


def _pairs(tensors: Tensors) -> Mapping[str, tuple[int, int, int]]:
    """Return place -> (rank, in, out) of the pairs of matrices. Raises UnusableWeights."""
    sides: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, tensor in tensors.items():
        match = MATRIX.fullmatch(name)
        if match:
            sides.setdefault(match["module"], {})[match["side"]] = tensor.shape
        elif not name.startswith(PREFIX):
            raise UnusableWeights(f"{WEIGHTS} holds {name}, which is no part of a LoRA adapter")
        if tensor.dtype not in FLOAT_TYPES:
            problem = f"{WEIGHTS} holds {name} as {tensor.dtype}, which no adapter is trained in"
            raise UnusableWeights(problem, RETRAIN)
    modules = {}
    for module, shapes in sides.items():
        down, up = shapes.get("A", ()), shapes.get("B", ())
        if len(down) != 2 or len(up) != 2 or down[0] != up[1]:
            raise UnusableWeights(f"{WEIGHTS} has no two matrices that fit for {module}")
        modules[module] = (down[0], down[1], up[0])
    if not modules:
        raise UnusableWeights(f"{WEIGHTS} holds no matrices of an adapter", RETRAIN)
    return modules


def _require_ranks(
    settings: Mapping[str, object], modules: Mapping[str, tuple[int, int, int]]
) -> None:
    """Raise UnusableWeights unless the settings give every layer the rank of its tensors."""
    for module, (rank, _in, _out) in modules.items():
        wanted = setting_of(settings, "rank_pattern", "r", module)
        if rank != wanted:
            problem = f"{SETTINGS} says rank {wanted} for {module}, but its tensors have {rank}"
            raise UnusableWeights(problem, COPY_AGAIN)


def setting_of(settings: Mapping[str, object], pattern: str, name: str, module: str) -> object:
    """Return a setting of one layer or parameter: of the first name in a pattern that means it."""
    special = settings.get(pattern) or {}
    assert isinstance(special, dict)
    for each, value in special.items():
        if _ends_with(module, each):
            return value
    return settings.get(name)


def scale_of(settings: Mapping[str, object], module: str, rank: int) -> float:
    """Return alpha / rank of a layer or parameter; alpha / sqrt(rank) for rsLoRA."""
    alpha = float(str(setting_of(settings, "alpha_pattern", "lora_alpha", module)))
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _require_magnitudes(
    settings: Mapping[str, object], modules: Mapping[str, tuple[int, int, int]], tensors: Tensors
) -> None:
    """Raise UnusableWeights unless DoRA, and nothing else, has its vector for every layer."""
    found = {}
    for name, tensor in tensors.items():
        match = MAGNITUDE.fullmatch(name)
        if match:
            found[match["module"]] = tensor.shape
    is_dora = settings.get("use_dora") is True
    if found and not is_dora:
        problem = f"{WEIGHTS} holds vectors of DoRA, but {SETTINGS} does not say use_dora"
        raise UnusableWeights(problem, COPY_AGAIN)
    if not is_dora:
        return
    for module, (_rank, _in, num_out) in modules.items():
        if math.prod(found.get(module, (0,))) != num_out:
            problem = f"{SETTINGS} says use_dora, but {WEIGHTS} has no vector of it that fits for "
            raise UnusableWeights(problem + module, COPY_AGAIN)


def _saved_tensors(
    settings: Mapping[str, object], pairs: Mapping[str, tuple[int, int, int]], tensors: Tensors
) -> Mapping[str, tuple[int, ...]]:
    """Return the tensors that replace those of the base. Raises UnusableWeights.

    They are those of modules_to_save, all of which must be there, and no others.
    """
    names = _saved_names(settings)
    saved, found = {}, set()
    for name, tensor in tensors.items():
        module = name.removeprefix(PREFIX).rpartition(".")[0]
        if MATRIX.fullmatch(name) or MAGNITUDE.fullmatch(name):
            continue
        # PEFT saves a frozen embedding or head beside its adapter.
        if module.removesuffix(WRAPPED) in pairs and module.endswith(WRAPPED):
            continue
        matching = {each for each in names if f".{each}." in f".{module}."}
        if not matching:
            problem = f"{WEIGHTS} holds {name}, which {SETTINGS} does not name"
            if module.removeprefix("model.") in EMBEDDINGS:
                # PEFT adds them by itself once tokens were added to the vocabulary.
                raise UnusableWeights(f"{problem}: its vocabulary has grown", MERGE)
            raise UnusableWeights(problem, COPY_AGAIN)
        found |= matching
        saved[name.removeprefix(PREFIX)] = tensor.shape
    optional = SCORE_HEADS if settings.get("task_type") == "SEQ_CLS" else frozenset()
    absent = sorted(names - found - optional)
    if settings.get("ensure_weight_tying") and found & EMBEDDINGS:
        absent = [name for name in absent if name not in EMBEDDINGS]
    if absent:
        problem = f"modules_to_save names {', '.join(absent)}, of which {WEIGHTS} has no tensors"
        raise UnusableWeights(problem, COPY_AGAIN)
    return saved


def _saved_names(settings: Mapping[str, object]) -> set[str]:
    """Return the names of modules_to_save; of one of two tied embeddings, both."""
    named = settings.get("modules_to_save") or []
    names = {str(each) for each in (named if isinstance(named, list) else [named])}
    if settings.get("ensure_weight_tying") and names & EMBEDDINGS:
        names |= EMBEDDINGS
    return names


def _target_modules(
    settings: Mapping[str, object], modules: Mapping[str, tuple[int, int, int]]
) -> list[str]:
    """Return names that mean exactly the layers with tensors: the adapter's own, if they do."""
    named = settings["target_modules"]
    is_narrowed = any(settings.get(name) for name in ("exclude_modules", "layers_to_transform"))
    endings = sorted({module.rpartition(".")[2] for module in modules})
    if isinstance(named, list) and not is_narrowed:
        names = sorted(map(str, named))
        if all(any(_ends_with(module, name) for name in names) for module in modules):
            return names
    layers = {module.rpartition(".")[0] for module in modules}
    if not is_narrowed and named == "all-linear" and len(layers) > 1:
        return endings
    return sorted(modules)


def _ends_with(module: str, name: str) -> bool:
    return module == name or module.endswith(f".{name}")
