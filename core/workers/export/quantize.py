"""Quantize a GGUF file with llama.cpp: `python -m core.workers.export.quantize TOOLS IN OUT FTYPE`.

FTYPE is the number of the type in llama.h.
"""

import sys


def main(tools: str, source: str, target: str, ftype: str) -> int:
    """Return the exit code: 0, or 1 if llama.cpp cannot."""
    sys.path.append(tools)
    from cyllama.llama import llama_cpp

    parameters = llama_cpp.LlamaModelQuantizeParams()
    parameters.ftype = int(ftype)
    code = llama_cpp.model_quantize(source, target, parameters)
    if code:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
