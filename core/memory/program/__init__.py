"""Training programs: models, precision, quantization, optimizer and passes that a job asks for."""

from core.memory.program.from_job import program_of
from core.memory.program.optimizers import OPTIMIZERS
from core.memory.program.precision import is_cpu, precision_of
from core.memory.program.program import (
    AuxiliaryModel,
    Generation,
    Head,
    LayerKind,
    Lora,
    NoGradForward,
    Program,
    When,
    layer_by_mlp,
)
from core.memory.program.quantization import Quantization

__all__ = [
    "OPTIMIZERS",
    "AuxiliaryModel",
    "Generation",
    "Head",
    "LayerKind",
    "Lora",
    "NoGradForward",
    "Program",
    "Quantization",
    "When",
    "is_cpu",
    "layer_by_mlp",
    "precision_of",
    "program_of",
]
