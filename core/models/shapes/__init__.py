"""Shape of a language model, from its config.json: every parameter tensor by name, size and role.

Never loads weights, imports torch or touches the disk. A new architecture is one row in FAMILIES.
"""

from core.models.shapes.config import shown_value
from core.models.shapes.families import FAMILIES
from core.models.shapes.parameter import Parameter
from core.models.shapes.shape import ModelShape

__all__ = ["FAMILIES", "ModelShape", "Parameter", "shown_value"]
