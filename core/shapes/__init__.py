"""The shape of a language model, from its config.json: every parameter tensor by name, size and kind.

Never loads weights, imports torch or touches the disk. A new architecture is one row in `families.FAMILIES`.
"""

from core.shapes.families import FAMILIES, UnknownArchitecture
from core.shapes.shape import ModelShape, Tensor

__all__ = ["FAMILIES", "ModelShape", "Tensor", "UnknownArchitecture"]
