"""TowerShape: layers that read pictures, beside a text decoder. They stay as they are in training.

Names and sizes are those of SigLIP and of Gemma 3's projector in transformers 5.23
(models/siglip/modeling_siglip.py, models/gemma3/modeling_gemma3.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType

from core.models.shapes.config import Config
from core.models.shapes.parameter import Parameter

DEFAULTS: Mapping[str, object] = MappingProxyType(
    {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_channels": 3,
        "image_size": 224,
        "patch_size": 16,
        "vision_use_head": True,
    }
)
"""Values of keys that `vision_config` may leave out."""
MAX_LAYERS = 4096


@dataclass(frozen=True)
class TowerShape:
    """Sizes of a vision tower, and of the projector to the width of the text decoder."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_channels: int
    image_size: int
    patch_size: int
    has_head: bool
    """True if it pools the patches of a picture."""
    text_hidden_size: int

    @staticmethod
    def from_config(vision_config: Mapping[str, object], text_hidden_size: int) -> "TowerShape":
        """Return the shape that the `vision_config` of a config.json describes.

        Raises ValueError naming a wrong key.
        """
        read = Config(vision_config, DEFAULTS)
        return TowerShape(
            hidden_size=read.whole("hidden_size"),
            intermediate_size=read.whole("intermediate_size"),
            num_hidden_layers=read.whole("num_hidden_layers", most=MAX_LAYERS),
            num_channels=read.whole("num_channels"),
            image_size=read.whole("image_size"),
            patch_size=read.whole("patch_size"),
            has_head=read.flag("vision_use_head"),
            text_hidden_size=text_hidden_size,
        )

    @cached_property
    def num_parameters(self) -> int:
        """Numbers in the tower and its projector."""
        return sum(parameter.numel for parameter in self.parameters)

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """Return every tensor of the tower and its projector."""
        layers = (
            replace(parameter, name=f"encoder.layers.{layer}.{parameter.name}")
            for layer in range(self.num_hidden_layers)
            for parameter in self._layer
        )
        tower = (*self._embeddings(), *layers, *_layer_norm("post_layernorm", self.hidden_size))
        if self.has_head:
            tower += self._head()
        projection = (self.hidden_size, self.text_hidden_size)
        return (
            *(replace(each, name=f"model.vision_tower.{each.name}") for each in tower),
            Parameter(
                "model.multi_modal_projector.mm_input_projection_weight", projection, "other"
            ),
            Parameter(
                "model.multi_modal_projector.mm_soft_emb_norm.weight", (self.hidden_size,), "norm"
            ),
        )

    def _embeddings(self) -> tuple[Parameter, ...]:
        size, num_patches = self.patch_size, (self.image_size // self.patch_size) ** 2
        kernel = (self.hidden_size, self.num_channels, size, size)
        positions = (num_patches, self.hidden_size)
        return (
            Parameter("embeddings.patch_embedding.weight", kernel, "other"),
            Parameter("embeddings.patch_embedding.bias", (self.hidden_size,), "bias"),
            Parameter("embeddings.position_embedding.weight", positions, "embedding"),
        )

    @cached_property
    def _layer(self) -> tuple[Parameter, ...]:
        hidden = self.hidden_size
        parameters = _layer_norm("layer_norm1", hidden)
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            parameters += _linear(f"self_attn.{name}", hidden, hidden)
        return parameters + _layer_norm("layer_norm2", hidden) + self._mlp()

    def _mlp(self, path: str = "mlp") -> tuple[Parameter, ...]:
        widen = _linear(f"{path}.fc1", self.intermediate_size, self.hidden_size)
        return widen + _linear(f"{path}.fc2", self.hidden_size, self.intermediate_size)

    def _head(self) -> tuple[Parameter, ...]:
        hidden = self.hidden_size
        return (
            Parameter("head.probe", (1, 1, hidden), "other"),
            Parameter("head.attention.in_proj_weight", (3 * hidden, hidden), "other"),
            Parameter("head.attention.in_proj_bias", (3 * hidden,), "bias"),
            *_linear("head.attention.out_proj", hidden, hidden),
            *_layer_norm("head.layernorm", hidden),
            *self._mlp("head.mlp"),
        )


def _linear(path: str, num_out: int, num_in: int) -> tuple[Parameter, ...]:
    weight = Parameter(f"{path}.weight", (num_out, num_in), "linear")
    return weight, Parameter(f"{path}.bias", (num_out,), "bias")


def _layer_norm(path: str, size: int) -> tuple[Parameter, ...]:
    return Parameter(f"{path}.weight", (size,), "norm"), Parameter(f"{path}.bias", (size,), "bias")
