"""Decoder layers of a model, of which a traced model keeps only some."""

from collections.abc import Sequence
from typing import Any

from torch import nn

LayerKind = tuple[Any, ...]
"""What tells one layer from another. Layers of one kind take the same memory."""


class DecoderLayers:
    """Decoder layers of a model, which can be reduced to some of them."""

    def __init__(self, model: Any):
        self._config = model.config.get_text_config()
        self._owner, self._name, layers = _find_layers(model, self._config.num_hidden_layers)
        self._all = tuple(layers)
        self._types = tuple(getattr(self._config, "layer_types", None) or ())

    @property
    def kinds(self) -> tuple[LayerKind, ...]:
        """Kind of each layer."""
        kinds = []
        for index, layer in enumerate(self._all):
            kinds.append(_kind(layer, self._types[index : index + 1]))
        return tuple(kinds)

    def keep(self, indices: Sequence[int]) -> dict[int, nn.Module]:
        """Reduce the model to these layers, in this order. Return them by index."""
        kept = {index: self._all[index] for index in indices}
        values: dict[str, Any] = {"num_hidden_layers": len(kept)}
        if self._types:
            values["layer_types"] = [self._types[index] for index in indices]
        # Assigned directly, past a check that both values always have the same length.
        vars(self._config).update(values)
        setattr(self._owner, self._name, nn.ModuleList(kept.values()))
        # A layer finds its place in the cache by its number.
        for number, layer in enumerate(kept.values()):
            for module in layer.modules():
                if hasattr(module, "layer_idx"):
                    vars(module)["layer_idx"] = number
        return kept


def _find_layers(model: nn.Module, num_layers: int) -> tuple[nn.Module, str, nn.ModuleList]:
    """Return (owner, name, list) of the largest list with as many modules as there are layers."""
    found = [
        (owner, name, child)
        for owner in model.modules()
        for name, child in owner.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == num_layers
    ]
    if not found:
        raise ValueError("its decoder layers are not in one list")
    return max(found, key=lambda item: sum(parameter.numel() for parameter in item[2].parameters()))


def _kind(layer: nn.Module, layer_type: tuple[Any, ...]) -> LayerKind:
    """Return a layer's type, whether it is checkpointed, and the shapes of its parameters."""
    parameters = [
        (name, tuple(parameter.shape), parameter.requires_grad)
        for name, parameter in layer.named_parameters()
    ]
    return (*layer_type, getattr(layer, "gradient_checkpointing", False), *parameters)
