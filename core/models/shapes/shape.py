"""ModelShape: layer sizes of a causal language model and the list of its parameters.

Names, sizes and order are those of named_parameters() in transformers 5.23. Knows no precision and
no memory.
"""

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Literal

from core.job import Problem, UnknownArchitecture
from core.models.shapes.config import MAX_SIZE, Config
from core.models.shapes.experts import ExpertTargets, targets_of
from core.models.shapes.families import FAMILIES, Family, QkNorm
from core.models.shapes.parameter import Parameter
from core.models.shapes.tower import TowerShape

LayerType = Literal["full_attention", "sliding_attention"]
_FULL: LayerType = "full_attention"
_SLIDING: LayerType = "sliding_attention"

LENGTHENING_ROPES = frozenset({"yarn", "linear", "dynamic"})
"""Scalings whose factor applies to the length in config.json where no original length is given."""
SCALED_ROPES = LENGTHENING_ROPES | {"llama3", "longrope"}
MAX_LAYERS = 4096
"""More layers than any model has; a larger number comes from a broken file."""


@dataclass(frozen=True)
class ModelShape:
    """Layer sizes of a causal language model. Build one with `ModelShape.from_config`."""

    model_type: str
    hidden_size: int
    intermediate_size: int
    """Width of the dense MLP; unused where every layer has experts."""
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    tie_word_embeddings: bool
    hidden_act: str
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    layer_types: tuple[LayerType, ...]
    """Attention of each layer."""
    sliding_window: int | None
    """Tokens that a sliding layer attends to; None if no layer slides."""
    attn_logit_softcapping: float | None
    final_logit_softcapping: float | None
    num_experts: int = 0
    """Experts in a sparse layer; 0 in a dense model."""
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0
    """Width of one expert."""
    dense_layers: tuple[int, ...] = ()
    """Layers of a mixture-of-experts model that have a dense MLP nevertheless."""
    tower: TowerShape | None = None
    """Layers that read pictures. Loaded with the model, never trained, not in `parameters`."""

    @staticmethod
    def from_config(config: Mapping[str, object]) -> "ModelShape":
        """Return the shape that a Hugging Face config.json describes, or its `text_config`.

        Raises UnknownArchitecture for other families, ValueError naming a missing or wrong key.
        """
        model_type = _known_model_type(config)
        family = FAMILIES[model_type]
        vision_config = config.get("vision_config") if family.is_multimodal else None
        if family.is_multimodal:
            config = _text_config(config)
        read = Config(config, family.defaults)
        num_layers = read.whole("num_hidden_layers", most=MAX_LAYERS)
        layer_types = _layer_types(read, family, num_layers)
        sliding_window = None
        if _SLIDING in layer_types:
            sliding_window = read.whole("sliding_window")
        shape = ModelShape(
            model_type=model_type,
            hidden_size=read.whole("hidden_size"),
            intermediate_size=read.whole("intermediate_size"),
            num_hidden_layers=num_layers,
            num_attention_heads=read.whole("num_attention_heads"),
            num_key_value_heads=_num_key_value_heads(read),
            head_dim=_head_dim(read),
            vocab_size=read.whole("vocab_size"),
            max_position_embeddings=_num_positions(read, family),
            tie_word_embeddings=read.flag("tie_word_embeddings"),
            hidden_act=family.hidden_act or read.text("hidden_act"),
            qkv_bias=_bias(read, family.qkv_bias, "attention_bias"),
            o_bias=_bias(read, family.o_bias, "attention_bias"),
            mlp_bias=_bias(read, family.mlp_bias, "mlp_bias"),
            layer_types=layer_types,
            sliding_window=sliding_window,
            attn_logit_softcapping=read.number_or_none("attn_logit_softcapping"),
            final_logit_softcapping=read.number_or_none("final_logit_softcapping"),
        )
        if isinstance(vision_config, Mapping):
            shape = replace(shape, tower=TowerShape.from_config(vision_config, shape.hidden_size))
        return _with_experts(shape, read)

    @property
    def family(self) -> Family:
        """Facts of its architecture that config.json does not state."""
        return FAMILIES[self.model_type]

    @property
    def qk_norm(self) -> QkNorm:
        """Span of the norm of queries and keys: none, one head, or all heads at once."""
        return self.family.qk_norm

    @property
    def fused_qkv(self) -> bool:
        """True if one linear layer computes queries, keys and values."""
        return self.family.fused_projections

    @property
    def fused_gate_up(self) -> bool:
        """True if one linear layer computes the gate and the up projection of the MLP."""
        return self.family.fused_projections

    @cached_property
    def num_parameters(self) -> int:
        """Number of parameters; a tied head counts once, with the embedding."""
        layers = map(self.layer_parameters, range(self.num_hidden_layers))
        return sum(
            parameter.numel
            for parameters in (self.outer_parameters(), *layers)
            for parameter in parameters
        )

    def has_experts(self, layer: int) -> bool:
        """Return True if the MLP of this layer is a mixture of experts."""
        return self.num_experts > 0 and layer not in self.dense_layers

    def expert_targets(self, names: Set[str]) -> ExpertTargets:
        """Return what names of layers mean among the experts; nothing in a dense model."""
        layers = (layer for layer in range(self.num_hidden_layers) if self.has_experts(layer))
        sparse = next(layers, None)
        if sparse is None or self.family.experts is None:
            return ExpertTargets()
        return targets_of(self.family.experts, self.layer_parameters(sparse), names)

    def expert_matrices(self, parameter: str, rank: int) -> tuple[int, int]:
        """Return the numbers in the two matrices of an adapter on a parameter of a sparse layer."""
        shape = next(each.shape for each in self._sparse_layer if each.name == parameter)
        *experts, num_out, num_in = shape
        if experts and self.family.experts and self.family.experts.is_transposed:
            num_out, num_in = num_in, num_out
        return rank * prod(experts) * num_in, rank * prod(experts) * num_out

    def outer_parameters(self) -> tuple[Parameter, ...]:
        """Return the parameters outside the layers: embedding, last norm, untied head."""
        matrix = (self.vocab_size, self.hidden_size)
        embedding = Parameter("model.embed_tokens.weight", matrix, "embedding")
        norm = _norm("model.norm", self.hidden_size)
        if self.tie_word_embeddings:
            return embedding, norm
        return embedding, norm, Parameter("lm_head.weight", matrix, "head")

    def layer_parameters(self, layer: int = 0) -> tuple[Parameter, ...]:
        """Return the parameters of one layer, named within it."""
        if self.has_experts(layer):
            return self._sparse_layer
        return self._dense_layer

    def parameters(self) -> tuple[Parameter, ...]:
        """Return every tensor of the model, in the order of named_parameters()."""
        embedding, *rest = self.outer_parameters()
        layers = (
            replace(parameter, name=f"model.layers.{layer}.{parameter.name}")
            for layer in range(self.num_hidden_layers)
            for parameter in self.layer_parameters(layer)
        )
        return embedding, *layers, *rest

    @cached_property
    def _dense_layer(self) -> tuple[Parameter, ...]:
        return _attention(self) + _dense_mlp(self) + _layer_norms(self)

    @cached_property
    def _sparse_layer(self) -> tuple[Parameter, ...]:
        return _attention(self) + _expert_mlp(self) + _layer_norms(self)


def _linear(path: str, num_out: int, num_in: int, has_bias: bool) -> tuple[Parameter, ...]:
    weight = Parameter(f"{path}.weight", (num_out, num_in), "linear")
    if has_bias:
        return weight, Parameter(f"{path}.bias", (num_out,), "bias")
    return (weight,)


def _norm(path: str, size: int) -> Parameter:
    return Parameter(f"{path}.weight", (size,), "norm")


def _attention(shape: ModelShape) -> tuple[Parameter, ...]:
    hidden, heads = shape.hidden_size, shape.num_attention_heads
    queries, keys = heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    parameters: tuple[Parameter, ...] = ()
    if shape.family.has_sinks:
        parameters += (Parameter("self_attn.sinks", (heads,), "other"),)
    output = _linear("self_attn.o_proj", hidden, queries, shape.o_bias)
    if shape.fused_qkv:
        width = queries + 2 * keys
        return parameters + output + _linear("self_attn.qkv_proj", width, hidden, shape.qkv_bias)
    parameters += _linear("self_attn.q_proj", queries, hidden, shape.qkv_bias)
    parameters += _linear("self_attn.k_proj", keys, hidden, shape.qkv_bias)
    parameters += _linear("self_attn.v_proj", keys, hidden, shape.qkv_bias)
    return parameters + output + _qk_norms(shape)


def _qk_norms(shape: ModelShape) -> tuple[Parameter, ...]:
    if shape.qk_norm == "none":
        return ()
    queries = keys = shape.head_dim
    if shape.qk_norm == "all_heads":
        queries *= shape.num_attention_heads
        keys *= shape.num_key_value_heads
    return _norm("self_attn.q_norm", queries), _norm("self_attn.k_norm", keys)


def _dense_mlp(shape: ModelShape) -> tuple[Parameter, ...]:
    hidden, width, has_bias = shape.hidden_size, shape.intermediate_size, shape.mlp_bias
    down = _linear("mlp.down_proj", hidden, width, has_bias)
    if shape.fused_gate_up:
        return _linear("mlp.gate_up_proj", 2 * width, hidden, has_bias) + down
    gate = _linear("mlp.gate_proj", width, hidden, has_bias)
    up = _linear("mlp.up_proj", width, hidden, has_bias)
    return gate + up + down


def _expert_mlp(shape: ModelShape) -> tuple[Parameter, ...]:
    layout = shape.family.experts
    assert layout is not None, "only a family with experts has sparse layers"
    hidden, width, count = shape.hidden_size, shape.moe_intermediate_size, shape.num_experts
    gate_up, down = (2 * width, hidden), (hidden, width)
    if layout.is_transposed:
        gate_up, down = gate_up[::-1], down[::-1]
    sizes: dict[str, tuple[int, ...]] = {"gate_up_proj": gate_up, "down_proj": down}
    router: tuple[Parameter, ...]
    router = (Parameter(f"mlp.{layout.router}.weight", (count, hidden), "router"),)
    if layout.has_bias:
        sizes = {
            "gate_up_proj": gate_up,
            "gate_up_proj_bias": (2 * width,),
            "down_proj": down,
            "down_proj_bias": (hidden,),
        }
        router += (Parameter(f"mlp.{layout.router}.bias", (count,), "router"),)
    experts = tuple(
        Parameter(f"mlp.experts.{name}", (count, *size), "expert") for name, size in sizes.items()
    )
    return router + experts if layout.router_is_first else experts + router


def _layer_norms(shape: ModelShape) -> tuple[Parameter, ...]:
    return tuple(_norm(name, shape.hidden_size) for name in shape.family.layer_norms)


def _known_model_type(config: Mapping[str, object]) -> str:
    model_type = Config(config, {}).text("model_type")
    if model_type not in FAMILIES:
        raise UnknownArchitecture(
            Problem(
                "model",
                f"the architecture {model_type[:64]!r} is not known",
                f"choose one of {', '.join(FAMILIES)}",
            )
        )
    return model_type


def _text_config(config: Mapping[str, object]) -> Mapping[str, object]:
    """Return the text decoder's part; tying concerns the whole model (source: Gemma3Config)."""
    tying = {"tie_word_embeddings": config.get("tie_word_embeddings", True)}
    return {**tying, **Config(config, {}).table("text_config")}


def _bias(read: Config, of_family: bool | None, key: str) -> bool:
    if of_family is None:
        return read.flag(key)
    return of_family


def _num_positions(read: Config, family: Family) -> int:
    """Return the positions that a model reads once its rotary embeddings are scaled.

    YaRN states the original length; a linear factor applies to the length in config.json, except
    where families state the scaled one (source: modeling_rope_utils).
    """
    positions = read.whole("max_position_embeddings")
    lengths = [positions]
    for scaling in _rope_scalings(read):
        kind = scaling.get("rope_type") or scaling.get("type")
        factor = scaling.number_or_none("factor")
        original = scaling.whole_or_none("original_max_position_embeddings")
        if factor is None or kind not in SCALED_ROPES or family.has_rope_per_layer_type:
            continue
        if original is not None:
            lengths.append(int(factor * original))
        elif kind in LENGTHENING_ROPES:
            lengths.append(int(factor * positions))
    longest = max(lengths)
    return min(longest, MAX_SIZE)


def _rope_scalings(read: Config) -> Iterator[Config]:
    """Yield the scalings of rotary embeddings under the older and the newer key."""
    for key in ("rope_scaling", "rope_parameters"):
        value = read.get(key)
        if isinstance(value, Mapping):
            yield Config(value, {})


def _num_key_value_heads(read: Config) -> int:
    """Return as many as query heads, unless config.json names a divisor of them."""
    num_heads = read.whole("num_attention_heads")
    num_key_value_heads = read.whole_or_none("num_key_value_heads") or num_heads
    if num_heads % num_key_value_heads:
        raise ValueError(
            f"config.json: num_key_value_heads {num_key_value_heads} does not divide "
            f"num_attention_heads {num_heads}"
        )
    return num_key_value_heads


def _head_dim(read: Config) -> int:
    """Return an equal share of hidden_size, unless config.json or the family gives a size."""
    hidden, num_heads = read.whole("hidden_size"), read.whole("num_attention_heads")
    head_dim = read.whole_or_none("head_dim")
    if head_dim is None and hidden % num_heads:
        raise ValueError(
            f"config.json: num_attention_heads {num_heads} does not divide hidden_size {hidden}"
        )
    return head_dim or hidden // num_heads


def _layer_types(read: Config, family: Family, num_layers: int) -> tuple[LayerType, ...]:
    """Return the attention of each layer: full unless it uses the model's sliding window."""
    if read.whole_or_none("sliding_window") is None:
        return (_FULL,) * num_layers
    named = read.items_or_none("layer_types") if family.reads_layer_types else None
    if named is None:
        slides = [family.slides(read, layer) for layer in range(num_layers)]
    elif len(named) != num_layers:
        raise ValueError(
            f"config.json: layer_types has {len(named)} items; it must have {num_layers}, "
            "one for each layer"
        )
    elif not {_FULL, _SLIDING}.issuperset(named):
        raise ValueError(f"config.json: layer_types may name {_FULL} and {_SLIDING} only")
    else:
        slides = [name == _SLIDING for name in named]
    return tuple(_SLIDING if each else _FULL for each in slides)


def _with_experts(shape: ModelShape, read: Config) -> ModelShape:
    """Return the shape with its mixture of experts, if it has one.

    Families call the number of experts num_experts or num_local_experts.
    """
    experts = shape.family.experts
    if experts is None:
        return shape
    key = "num_local_experts" if read.get("num_experts") is None else "num_experts"
    num_experts = read.whole(key, least=0)
    if num_experts == 0:
        return shape
    return replace(
        shape,
        num_experts=num_experts,
        num_experts_per_tok=read.whole("num_experts_per_tok", most=num_experts),
        moe_intermediate_size=read.whole(experts.width_key),
        dense_layers=_dense_layers(read, shape.num_hidden_layers),
    )


def _dense_layers(read: Config, num_layers: int) -> tuple[int, ...]:
    """Return the layers whose MLP is dense all the same (source: Qwen3MoeDecoderLayer)."""
    step = read.whole_or_none("decoder_sparse_step") or 1
    named_dense = read.items_or_none("mlp_only_layers") or ()
    return tuple(layer for layer in range(num_layers) if layer in named_dense or (layer + 1) % step)
