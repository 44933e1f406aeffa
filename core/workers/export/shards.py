"""Safetensors files, one tensor at a time. Knows nothing of models."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
"""Type as a header names it -> type of torch."""
ALIGNMENT = 8
"""Bytes of which the header is a multiple, as safetensors writes it."""
COPY_BYTES = 16 * 2**20


@dataclass(frozen=True)
class ShardEntry:
    """Tensor as a header describes it."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * DTYPES[self.dtype].itemsize


class Tensors:
    """Tensors of several files, read by name."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = files
        """Name of a tensor -> file that holds it."""

    @classmethod
    def of_file(cls, path: Path) -> "Tensors":
        """Return the tensors of one file."""
        return cls({entry.name: path for entry in entries_in_order(path)})

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor on the CPU. Opens the file each time: no page stays mapped."""
        with safe_open(self._files[name], framework="pt") as file:
            return file.get_tensor(name)


def entries_in_order(path: Path) -> Iterator[ShardEntry]:
    """Yield the tensors of a file in the order of their numbers."""
    header = read_header(path)
    header.pop("__metadata__", None)
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        yield ShardEntry(name, entry["dtype"], tuple(entry["shape"]))


def read_header(path: Path) -> dict[str, Any]:
    """Return the header of a file that was checked before."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(length))
    return header


def write_shard(
    path: Path,
    entries: tuple[ShardEntry, ...],
    value_of: Callable[[ShardEntry], torch.Tensor],
    on_written: Callable[[int], None],
) -> str:
    """Write a file tensor after tensor and return its SHA-256. A killed process leaves no file.

    `on_written` is called with the bytes of each tensor. Raises OSError for a full disk.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in entries:
        header[entry.name] = {
            "dtype": entry.dtype,
            "shape": entry.shape,
            "data_offsets": [end, end + entry.num_bytes],
        }
        end += entry.num_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    digest = hashlib.sha256()
    with replaced(path) as file:
        for part in (len(text).to_bytes(8, "little"), text):
            file.write(part)
            digest.update(part)
        for entry in entries:
            numbers = bytes_of(value_of(entry).to(DTYPES[entry.dtype]))
            file.write(numbers)
            digest.update(numbers)
            on_written(entry.num_bytes)
    return digest.hexdigest()


def copy_file(source: Path, target: Path, on_written: Callable[[int], None]) -> str:
    """Copy a file and return its SHA-256. Raises OSError."""
    digest = hashlib.sha256()
    with source.open("rb") as original, replaced(target) as file:
        while part := original.read(COPY_BYTES):
            file.write(part)
            digest.update(part)
            on_written(len(part))
    return digest.hexdigest()


@contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file, which takes its name only when it is complete and on the disk."""
    temporary = path.with_name(f"{path.name}.part")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """Return the numbers of a tensor as bytes, without a copy if it is contiguous."""
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
