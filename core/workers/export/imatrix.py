"""Write an importance matrix in llama.cpp's form:
`python -m core.workers.export.imatrix TOOLS NPZ GGUF OUT`.

NPZ has the means by the names of layers in transformers, GGUF is the model that is quantized.
TOOLS has the package `gguf`, which this process alone sees.
"""

import sys

import numpy as np

SUMS, COUNTS = ".in_sum2", ".counts"
"""Ends of the names of two tensors for each weight: sums of squares, and how many were summed."""


def main(tools: str, importance: str, model: str, target: str) -> None:
    """Write the matrix of the layers that the model has by another name."""
    sys.path.insert(0, tools)
    import gguf

    reader = gguf.GGUFReader(model)
    architecture = str(reader.fields["general.architecture"].contents())
    blocks = int(reader.fields[f"{architecture}.block_count"].contents())
    widths = {tensor.name: int(tensor.shape[0]) for tensor in reader.tensors}
    kind = {name: each for each, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    names = gguf.get_tensor_name_map(kind, blocks)
    writer = gguf.GGUFWriter(target, architecture)
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["rows of the training"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 1)
    found = 0
    for layer, means in np.load(importance).items():
        name = f"{names.get_name(layer)}.weight"
        if name.startswith("blk.") and widths.get(name) == len(means):
            writer.add_tensor(f"{name}{SUMS}", means.astype(np.float32)[None, :])
            writer.add_tensor(f"{name}{COUNTS}", np.ones((1, 1), np.float32))
            found += 1
    if not found:
        sys.exit("Error: no layer of the model has a name that llama.cpp knows")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
