"""FORMS and QUANTS: what a result can be exported as. Facts only."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

FormName = Literal["merged", "gguf", "adapter-gguf", "ollama", "hub"]
BaseChoice = Literal["trained", "original"]
"""trained: the base as the training saw it, with the rounding of its quantization. original: the
base as it is published."""


@dataclass(frozen=True)
class Quant:
    """Type of the numbers in a GGUF file."""

    name: str
    ftype: int
    """Number of the type in llama.h (LLAMA_FTYPE_MOSTLY_*)."""
    bits: float
    """Bits per weight on average, scales included, over the layers of a decoder."""
    is_16_bit: bool = False


_QUANTS = (
    Quant("F16", 1, 16, True),
    Quant("BF16", 32, 16, True),
    Quant("Q8_0", 7, 8.5),
    Quant("Q6_K", 18, 6.57),
    Quant("Q5_K_M", 17, 5.7),
    Quant("Q4_K_M", 15, 4.9),
    Quant("Q4_K_S", 14, 4.6),
)
QUANTS: Mapping[str, Quant] = MappingProxyType({each.name: each for each in _QUANTS})
DEFAULT_QUANT = "Q4_K_M"
FROM_ROWS = "rows"
"""Importance matrix that is measured on rows of the training."""
WITHOUT_MATRIX = ("F16", "BF16", "Q8_0")
"""Types that use no importance matrix."""
BLOCK = 256
"""Numbers that K-quants scale together. A row that it does not divide takes another type."""


@dataclass(frozen=True)
class ExportForm:
    """Form of an export."""

    name: FormName
    title: str
    help: str
    has_quant: bool = False
    """True if its numbers are of a type in QUANTS."""
    needs_tools: bool = False
    """True if it needs the converters of requirements-export.txt, or llama.cpp itself."""


# fmt: off
_FORMS = (
    ExportForm("merged", "Use in Python",
         "one folder with the whole model, for transformers, vLLM and SGLang"),
    ExportForm("gguf", "Use in llama.cpp", "one file for llama.cpp, LM Studio and others",
         has_quant=True, needs_tools=True),
    ExportForm("adapter-gguf", "Adapter as GGUF", "the adapter alone, for llama.cpp over its base",
         needs_tools=True),
    ExportForm("ollama", "Use in Ollama", "a GGUF file with a Modelfile, in one zip",
         has_quant=True, needs_tools=True),
    ExportForm("hub", "Publish on the Hub", "the result with a model card in your repository"),
)
# fmt: on
FORMS: Mapping[str, ExportForm] = MappingProxyType({form.name: form for form in _FORMS})
