"""Quantize weights again with their importance, by the function of llama.cpp alone:
`python -m tests.builders.weighed_quantization TOOLS SOURCE MATRIX QUANTIZED` prints how many of the
weights in the matrix are the same bytes in QUANTIZED, and of how many."""

import ctypes
import sys
from typing import Any

import numpy as np

from core.workers.export.imatrix import SUMS

FLOATS = ctypes.POINTER(ctypes.c_float)


def main(tools: str, source: str, matrix: str, quantized: str) -> None:
    """Print the two numbers."""
    sys.path.append(tools)
    import gguf
    import xllamacpp

    library = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    weights = {each.name: each for each in gguf.GGUFReader(source).tensors}
    found = {each.name: each for each in gguf.GGUFReader(quantized).tensors}
    same = total = 0
    for entry in gguf.GGUFReader(matrix).tensors:
        if entry.name.endswith(SUMS):
            name = entry.name.removesuffix(SUMS)
            weight = gguf.quants.dequantize(weights[name].data, weights[name].tensor_type)
            importance = np.ascontiguousarray(entry.data.reshape(-1), np.float32)
            alone = quantize(library, int(found[name].tensor_type), weight, importance)
            same += alone[: found[name].n_bytes] == found[name].data.tobytes()
            total += 1
    print(f"{same} of {total}")


def quantize(library: Any, kind: int, weight: np.ndarray, importance: np.ndarray) -> bytes:
    """Return the bytes of a weight as a type of llama.cpp."""
    numbers = np.ascontiguousarray(weight, np.float32)
    num_rows, width = numbers.shape
    target = ctypes.create_string_buffer(numbers.nbytes)
    library.ggml_quantize_chunk(
        kind,
        numbers.ctypes.data_as(FLOATS),
        target,
        ctypes.c_int64(0),
        ctypes.c_int64(num_rows),
        ctypes.c_int64(width),
        importance.ctypes.data_as(FLOATS),
    )
    return target.raw


if __name__ == "__main__":
    main(*sys.argv[1:])
