"""Safetensors files with the headers that a test wants, and zeros as numbers."""

import json
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path

BYTES = {"U8": 1, "I8": 1, "F8_E4M3": 1, "BF16": 2, "F16": 2, "F32": 4, "I32": 4}


def write_header(path: Path, tensors: Mapping[str, tuple[str, Sequence[int]]]) -> None:
    """Write a file with these tensors: name -> (type, shape)."""
    entries, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + prod(shape) * BYTES[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    header = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)
