"""Weight files of a model or adapter folder: which are used, and the tensors in their headers.

Reads headers and indexes in bounded memory. Never reads a tensor, follows a path out of the folder
or opens a pickle.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path

from ..typed_json import with_each_key_once

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100 * 10**6
"""The limit of the format itself."""
MAX_INDEX_BYTES = 64 * 2**20
MAX_NAME_CHARACTERS = 512
PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt"})
SHARD = re.compile(r".+-\d{5}-of-\d{5}\.safetensors")
DISTRIBUTED_SHARD = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
"""Files of which transformers reads the pickled index `.metadata`."""
PLAIN_NAME = re.compile(r"[^/\\\x00-\x1f]{1,255}")
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
MAX_POINTER_BYTES = 1024
BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
}
"""Type of the format -> bits of one number. Types of fewer than 8 bits are not listed."""
FLOAT_TYPES = frozenset({"F16", "BF16", "F32", "F64"})
"""Types in which a model that is not quantized is stored."""
UNUSED_TENSORS = re.compile(
    r"(^|\.)(rotary_emb\.inv_freq|masked_bias|position_ids|attn\.bias|[kv]_scale|kv_scale"
    r"|input_scale|output_scale|activation_scale)$"
    r"|^(score|classifier|v_head)\.|^(vision_tower|multi_modal_projector|vision_model|visual)\."
    r"|^model\.(vision_tower|multi_modal_projector|visual)\.|^mtp\."
)
"""Tensors that no training uses: old rotary tables, scales of activations and caches, other heads,
vision, prediction of several tokens."""
NUM_SAMPLES, SAMPLE_BYTES = 64, 16 * 1024
"""Samples of a weight file in its fingerprint."""
NUM_SHOWN = 5
"""Tensors that a message names."""
DOWNLOAD_AGAIN = "download the model again"


class UnusableWeights(Exception):
    """Weight files that cannot be used as they are."""

    def __init__(self, problem: str, fix: str = DOWNLOAD_AGAIN):
        super().__init__(f"{problem}; {fix}")
        self.problem = problem
        self.fix = fix


class NoWeights(UnusableWeights):
    """Folder without any weight file. Its memory can be estimated nevertheless."""


@dataclass(frozen=True)
class StoredTensor:
    """Tensor as a header describes it."""

    dtype: str
    """Type as the format calls it, such as BF16."""
    shape: tuple[int, ...]
    file: str

    @property
    def num_bytes(self) -> int:
        """Size of a tensor in a type of at least 8 bits."""
        return prod(self.shape) * BITS.get(self.dtype, 8) // 8


Tensors = Mapping[str, StoredTensor]


def stored_tensors(folder: Path) -> Tensors:
    """Return name -> tensor of all files that transformers loads from a folder.

    Raises UnusableWeights, and NoWeights if there are none.
    """
    tensors: dict[str, StoredTensor] = {}
    for path in weight_files(folder):
        for name, tensor in header_of(path).items():
            if name in tensors:
                raise UnusableWeights(f"{name} is in {tensors[name].file} and in {path.name}")
            tensors[name] = tensor
    _require_index_holds(folder, tensors)
    return tensors


def weight_files(folder: Path, *, may_be_incomplete: bool = False) -> tuple[Path, ...]:
    """Return the safetensors files that transformers loads from a folder.

    `may_be_incomplete` leaves out what a download will add. Raises UnusableWeights, and NoWeights
    if there are none.
    """
    names = {path.name for path in folder.iterdir() if path.is_file()}
    if any(DISTRIBUTED_SHARD.fullmatch(name) for name in names):
        problem = "the weights are a distributed checkpoint"
        raise UnusableWeights(problem, "save the model with save_pretrained in one process")
    if WEIGHTS in names:
        return (folder / WEIGHTS,)
    if INDEX in names:
        wanted = sorted(set(read_index(folder / INDEX).values()))
        missing = [name for name in wanted if name not in names]
        if missing and not may_be_incomplete:
            more = ", …" if len(missing) > 1 else ""
            problem = f"{len(missing)} of {len(wanted)} weight files are not there: {missing[0]}"
            raise UnusableWeights(problem + more)
        return tuple(folder / name for name in wanted if name in names)
    if may_be_incomplete:
        return ()
    raise _no_usable_weights(names)


def fingerprint_of(folder: Path) -> str:
    """Return a hash of samples of all weight files: another training of a model changes it.

    Reads 1 MiB of each file. Raises UnusableWeights, OSError.
    """
    digest = hashlib.sha256()
    for path in weight_files(folder):
        num_bytes = path.stat().st_size
        digest.update(f"{path.name} {num_bytes}\n".encode())
        last = max(0, num_bytes - SAMPLE_BYTES)
        with path.open("rb") as file:
            for place in range(NUM_SAMPLES):
                file.seek(last * place // (NUM_SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def read_index(path: Path) -> Mapping[str, str]:
    """Return tensor name -> file name of an index. Raises UnusableWeights."""
    require_no_pointer(path)
    try:
        with path.open("rb") as file:
            text = file.read(MAX_INDEX_BYTES).decode()
        index = json.loads(text, object_pairs_hook=with_each_key_once)
        named = index["weight_map"]
        pairs = list(named.items())
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise UnusableWeights(f"{path.name} cannot be read") from None
    for tensor, name in pairs:
        if not is_shown(tensor):
            raise UnusableWeights(f"{path.name} cannot be read")
        is_plain = isinstance(name, str) and PLAIN_NAME.fullmatch(name)
        if not is_plain or not name.endswith(".safetensors"):
            problem = f"{path.name} names {str(name)[:100]!r}, which is no file *.safetensors"
            raise UnusableWeights(f"{problem} of the folder", "choose another model")
    if not pairs:
        raise UnusableWeights(f"{path.name} names no files")
    return dict(named)


def is_shown(name: str) -> bool:
    """Return True for a name of a tensor that a message can show: short, and no control signs."""
    return len(name) <= MAX_NAME_CHARACTERS and name.isprintable()


def header_of(path: Path) -> Tensors:
    """Return name -> tensor of one safetensors file. Raises UnusableWeights."""
    try:
        stat = path.stat()
    except OSError:
        raise UnusableWeights(f"{path.name} cannot be read") from None
    return _header(path, stat.st_size, stat.st_mtime_ns)


def require_no_pointer(path: Path) -> None:
    """Raise UnusableWeights for a file of Git LFS that was never downloaded."""
    try:
        if path.stat().st_size > MAX_POINTER_BYTES:
            return
        with path.open("rb") as file:
            is_pointer = file.read(len(LFS_POINTER)) == LFS_POINTER
    except OSError:
        return
    if is_pointer:
        problem = f"{path.name} is a Git LFS pointer, not the file itself"
        raise UnusableWeights(problem, "run `git lfs pull` in the folder, or download it again")


@lru_cache(maxsize=4096)  # a form asks on every edit
def _header(path: Path, num_bytes: int, _modified: int) -> Tensors:
    require_no_pointer(path)
    if num_bytes == 0:
        raise UnusableWeights(f"{path.name} is empty")
    broken = UnusableWeights(f"{path.name} is damaged: it is no safetensors file")
    try:
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            if not 2 <= header_bytes <= MAX_HEADER_BYTES:
                raise broken
            if num_bytes < 8 + header_bytes:
                raise UnusableWeights(f"{path.name} is cut off within its header")
            entries = json.loads(file.read(header_bytes), object_pairs_hook=with_each_key_once)
    except (OSError, ValueError, RecursionError):
        raise broken from None
    if not isinstance(entries, dict):
        raise broken
    entries.pop("__metadata__", None)
    tensors, end = {}, 0
    for name, entry in entries.items():
        tensors[name], last = _entry(name, entry, path.name, broken)
        end = max(end, last)
    if num_bytes != 8 + header_bytes + end:
        wanted = 8 + header_bytes + end
        problem = f"{path.name} has {num_bytes:,} bytes instead of {wanted:,}"
        raise UnusableWeights(f"{problem}: it is cut off or damaged")
    return tensors


def _entry(
    name: str, entry: object, file: str, broken: UnusableWeights
) -> tuple[StoredTensor, int]:
    """Return (tensor, end of its numbers in the file). Raises `broken`."""
    try:
        assert isinstance(entry, dict)
        dtype, shape = entry["dtype"], entry["shape"]
        start, end = entry["data_offsets"]
    except (AssertionError, KeyError, TypeError, ValueError):
        raise broken from None
    numbers = (start, end, *shape) if isinstance(shape, list) else (None,)
    are_whole = all(type(number) is int and number >= 0 for number in numbers)
    if not are_whole or not isinstance(dtype, str) or not is_shown(name):
        raise broken
    tensor = StoredTensor(dtype, tuple(shape), file)
    if dtype in BITS and end - start != tensor.num_bytes:
        raise broken
    return tensor, end


def _require_index_holds(folder: Path, tensors: Tensors) -> None:
    """Raise UnusableWeights if the index, where it is used, names a tensor that its file lacks."""
    if (folder / WEIGHTS).is_file():
        return
    for name, file in read_index(folder / INDEX).items():
        if name not in tensors or tensors[name].file != file:
            problem = f"{INDEX} says that {name} is in {file}, where it is not"
            raise UnusableWeights(problem)


def _no_usable_weights(names: set[str]) -> UnusableWeights:
    """Return what is wrong with a folder that has neither the one file nor an index."""
    safetensors = sorted(name for name in names if name.endswith(".safetensors"))
    suffixes = {Path(name).suffix for name in names}
    if any(SHARD.fullmatch(name) for name in safetensors):
        problem = f"it has parts of the weights, such as {safetensors[0]}, but no {INDEX}"
        return UnusableWeights(problem, "download that file too, or the whole model again")
    others = [name for name in safetensors if not name.startswith("adapter_")]
    if others:
        problem = f"its weights are in {others[0]}, but transformers reads {WEIGHTS}"
        return UnusableWeights(problem, "give the folder in the form of transformers")
    if ".gguf" in suffixes:
        problem = "it holds GGUF files only, which are for running a model, not for training"
        return UnusableWeights(problem, "choose the model in safetensors that they were made of")
    if suffixes & PICKLE_SUFFIXES:
        problem = "it has pickle weights only; weights must be safetensors"
        fix = "load it where you trust it and save it again with save_pretrained"
        return UnusableWeights(problem, fix)
    return NoWeights(f"it has no weights: {WEIGHTS} is missing")


def listed(names_and_shapes: Sequence[tuple[str, Sequence[int]]]) -> str:
    """Return the first names with their sizes, as messages show them."""
    shown = [f"{name} ({sizes(shape)})" for name, shape in names_and_shapes[:NUM_SHOWN]]
    return ", ".join(shown)


def sizes(shape: Sequence[int]) -> str:
    """Return a shape as messages show it."""
    return " × ".join(map(str, shape)) or "one number"


def tensors_counted(number: int) -> str:
    """Return a number of tensors as messages say it."""
    return "1 tensor" if number == 1 else f"{number:,} tensors"
