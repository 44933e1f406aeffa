"""Quantize a GGUF file with llama.cpp:
`python -m core.workers.export.quantize TOOLS IN OUT FTYPE [IMATRIX]`.

FTYPE is the number of the type in llama.h, IMATRIX an importance matrix in llama.cpp's form.
"""

import ctypes
import sys
from typing import Any

from core.workers.export.imatrix import COUNTS, SUMS

NUM_THREADS, FTYPE_FOR_SEARCH = 1_234_567, 7_654_321
"""Values by which the parameters are found in memory."""
OTHER_MODEL = "Error: the importance matrix is that of another model"
OFFSET_OF_MATRIX = 24
"""Bytes from the first parameter to the pointer to the matrix (llama_model_quantize_params)."""


class MatrixEntry(ctypes.Structure):
    """Importance of the columns of one weight (llama_model_imatrix_data in llama.h)."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("data", ctypes.POINTER(ctypes.c_float)),
        ("size", ctypes.c_size_t),
    )


def main(tools: str, source: str, target: str, ftype: str, imatrix: str = "") -> int:
    """Return the exit code: 0, or 1 if llama.cpp cannot."""
    sys.path.append(tools)
    from cyllama.llama import llama_cpp

    parameters = llama_cpp.LlamaModelQuantizeParams()
    entries: Any = None  # must live as long as llama.cpp reads it
    if imatrix:
        entries = entries_of(imatrix, source)
        set_matrix(parameters, entries)
    parameters.ftype = int(ftype)
    code = llama_cpp.model_quantize(source, target, parameters)
    del entries
    if code:
        return 1
    return 0


def entries_of(path: str, model: str) -> Any:
    """Return the entries of an importance matrix as an array that llama.cpp reads; the last one
    has no name. Exits if none is of a weight of the model: llama.cpp would say nothing."""
    import gguf
    import numpy as np

    try:
        tensors = {each.name: np.array(each.data) for each in gguf.GGUFReader(path).tensors}
    except ValueError:
        sys.exit("Error: the importance matrix is no GGUF file, as llama-imatrix writes it now")
    names = [name.removesuffix(SUMS) for name in tensors if name.endswith(SUMS)]
    if not names:
        sys.exit("Error: the file holds no importance matrix")
    widths = {each.name: int(each.shape[0]) for each in gguf.GGUFReader(model).tensors}
    if not widths.keys() & set(names):
        sys.exit(OTHER_MODEL)
    entries = (MatrixEntry * (len(names) + 1))()
    for place, name in enumerate(names):
        counts = np.maximum(tensors[f"{name}{COUNTS}"].reshape(-1, 1), 1)
        sums = tensors[f"{name}{SUMS}"].reshape(len(counts), -1)
        means = np.ascontiguousarray((sums / counts).reshape(-1), np.float32)
        if len(means) % widths.get(name, 1):
            sys.exit(OTHER_MODEL)
        numbers = (ctypes.c_float * len(means)).from_buffer_copy(means.tobytes())
        pointer = ctypes.cast(numbers, ctypes.POINTER(ctypes.c_float))
        entries[place] = MatrixEntry(name.encode(), pointer, len(means))
    return entries


def set_matrix(parameters: Any, entries: Any) -> None:
    """Give the parameters a matrix. The package lets Python read this field only, so it is found
    beside two others. Exits if it is not where llama.h has it."""
    before = parameters.nthread
    parameters.nthread, parameters.ftype = NUM_THREADS, FTYPE_FOR_SEARCH
    size = type(parameters).__basicsize__
    raw = (ctypes.c_ubyte * size).from_address(id(parameters))
    numbers = (ctypes.c_int32 * 2)(NUM_THREADS, FTYPE_FOR_SEARCH)
    start = bytes(raw).find(bytes(numbers))
    parameters.nthread = before
    if start < 0 or start + OFFSET_OF_MATRIX + ctypes.sizeof(ctypes.c_void_p) > size:
        sys.exit("Error: this version of cyllama takes no importance matrix")
    place = ctypes.c_void_p.from_address(id(parameters) + start + OFFSET_OF_MATRIX)
    if place.value is not None:
        sys.exit("Error: this version of cyllama takes no importance matrix")
    place.value = ctypes.addressof(entries)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
