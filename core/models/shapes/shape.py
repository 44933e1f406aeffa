"""ModelShape: the layer sizes of a causal language model and the list of its parameter tensors.

Names, sizes and order are those of named_parameters() in transformers 5.23. Knows nothing of precision or memory.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Literal, Self

from core.job import Problem, UnknownArchitecture
from core.models.shapes.config import Config
from core.models.shapes.families import (
    FAMILIES,
    SANDWICH_NORMS,
    Family,
    QkNorm,
)

Kind = Literal["embedding", "linear", "norm", "bias", "expert", "router", "head", "other"]
LayerType = Literal["full_attention", "sliding_attention"]
_FULL: LayerType = "full_attention"
_SLIDING: LayerType = "sliding_attention"

MAX_LAYERS = 4096
"""Above the depth of every model; more is a broken file."""


@dataclass(frozen=True)
class Tensor:
    """One parameter tensor."""

    name: str
    """Path in the model (`lm_head.weight`), or within its layer (`self_attn.q_proj.weight`)."""
    shape: tuple[int, ...]
    kind: Kind

    @property
    def num_elements(self) -> int:
        """How many numbers it holds."""
        return prod(self.shape)

    @property
    def is_linear(self) -> bool:
        """True for the weight of a linear layer of a block: what LoRA can target and bitsandbytes quantises."""
        return self.kind == "linear"

    @property
    def module(self) -> str:
        """Own name of the module that holds it (`q_proj`), as PEFT's target_modules writes it."""
        return self.name.split(".")[-2]


@dataclass(frozen=True)
class ModelShape:
    """The layer sizes of a causal language model. Make one with `ModelShape.from_config`."""

    model_type: str
    hidden_size: int
    intermediate_size: int
    """Width of the dense MLP; of no meaning where every layer has experts."""
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
    """Tokens that a sliding layer looks back; None if no layer slides."""
    attn_logit_softcapping: float | None
    final_logit_softcapping: float | None
    num_experts: int
    """Experts in a sparse layer; 0 in a dense model."""
    num_experts_per_tok: int
    moe_intermediate_size: int
    """Width of one expert."""
    dense_layers: tuple[int, ...]
    """Layers of a mixture-of-experts model that have a dense MLP all the same."""

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> Self:
        """The shape that a Hugging Face config.json describes; of a multimodal model, that of its text decoder.

        Raises UnknownArchitecture for other families, and ValueError naming the key that is missing or wrong.
        """
        model_type = _known_model_type(config)
        family = FAMILIES[model_type]
        read = Config(_text_config(config) if family.is_multimodal else config, family.defaults)
        num_layers = read.whole("num_hidden_layers", most=MAX_LAYERS)
        num_experts = _num_experts(read, family)
        layer_types = _layer_types(read, family, num_layers)
        return cls(
            model_type=model_type,
            hidden_size=read.whole("hidden_size"),
            intermediate_size=read.whole("intermediate_size"),
            num_hidden_layers=num_layers,
            num_attention_heads=read.whole("num_attention_heads"),
            num_key_value_heads=_num_key_value_heads(read),
            head_dim=_head_dim(read),
            vocab_size=read.whole("vocab_size"),
            max_position_embeddings=read.whole("max_position_embeddings"),
            tie_word_embeddings=read.flag("tie_word_embeddings"),
            hidden_act=family.hidden_act or read.text("hidden_act"),
            qkv_bias=read.flag("attention_bias") if family.qkv_bias is None else family.qkv_bias,
            o_bias=read.flag("attention_bias") if family.o_bias is None else family.o_bias,
            mlp_bias=read.flag("mlp_bias") if family.mlp_bias is None else family.mlp_bias,
            layer_types=layer_types,
            sliding_window=read.whole("sliding_window") if _SLIDING in layer_types else None,
            attn_logit_softcapping=read.number_or_none("attn_logit_softcapping"),
            final_logit_softcapping=read.number_or_none("final_logit_softcapping"),
            num_experts=num_experts,
            num_experts_per_tok=read.whole("num_experts_per_tok", most=num_experts)
            if num_experts
            else 0,
            moe_intermediate_size=read.whole(family.experts.width_key)
            if family.experts and num_experts
            else 0,
            dense_layers=_dense_layers(read, num_layers) if num_experts else (),
        )

    @property
    def family(self) -> Family:
        """What its architecture has that no config.json says."""
        return FAMILIES[self.model_type]

    @property
    def is_text_part(self) -> bool:
        """True if the model also has a vision part, which is not counted here."""
        return self.family.is_multimodal

    @property
    def qk_norm(self) -> QkNorm:
        """What the norm of queries and keys spans: nothing, one head, or all heads at once."""
        return self.family.qk_norm

    @property
    def sandwich_norms(self) -> bool:
        """True if attention and MLP are normed both before and after."""
        return self.family.layer_norms == SANDWICH_NORMS

    @property
    def fused_qkv(self) -> bool:
        """True if one linear layer makes queries, keys and values."""
        return self.family.fused_projections

    @property
    def fused_gate_up(self) -> bool:
        """True if one linear layer makes the gate and the up projection of the MLP."""
        return self.family.fused_projections

    @cached_property
    def num_parameters(self) -> int:
        """Parameters of the whole model; a tied head counts once, with its embedding."""
        inner = sum(
            tensor.num_elements
            for layer in range(self.num_hidden_layers)
            for tensor in self.layer_tensors(layer)
        )
        return inner + sum(tensor.num_elements for tensor in self.outer_tensors())

    def has_experts(self, layer: int) -> bool:
        """True if this layer's MLP is a mixture of experts."""
        return self.num_experts > 0 and layer not in self.dense_layers

    def outer_tensors(self) -> tuple[Tensor, ...]:
        """The tensors outside the layers: embedding, last norm, and the head unless it is tied."""
        matrix = (self.vocab_size, self.hidden_size)
        head = () if self.tie_word_embeddings else (Tensor("lm_head.weight", matrix, "head"),)
        return (
            Tensor("model.embed_tokens.weight", matrix, "embedding"),
            _norm("model.norm", self.hidden_size),
            *head,
        )

    def layer_tensors(self, layer: int = 0) -> tuple[Tensor, ...]:
        """The tensors of one layer, named within it."""
        return self._sparse_layer if self.has_experts(layer) else self._dense_layer

    def tensors(self) -> tuple[Tensor, ...]:
        """Every tensor of the model, in the order of named_parameters()."""
        embedding, *rest = self.outer_tensors()
        layers = (
            replace(tensor, name=f"model.layers.{layer}.{tensor.name}")
            for layer in range(self.num_hidden_layers)
            for tensor in self.layer_tensors(layer)
        )
        return embedding, *layers, *rest

    @cached_property
    def _dense_layer(self) -> tuple[Tensor, ...]:
        return _attention(self) + _dense_mlp(self) + _layer_norms(self)

    @cached_property
    def _sparse_layer(self) -> tuple[Tensor, ...]:
        return _attention(self) + _expert_mlp(self) + _layer_norms(self)


def _linear(path: str, num_out: int, num_in: int, has_bias: bool) -> tuple[Tensor, ...]:
    bias = (Tensor(f"{path}.bias", (num_out,), "bias"),) if has_bias else ()
    return Tensor(f"{path}.weight", (num_out, num_in), "linear"), *bias


def _norm(path: str, size: int) -> Tensor:
    return Tensor(f"{path}.weight", (size,), "norm")


def _attention(shape: ModelShape) -> tuple[Tensor, ...]:
    hidden, heads = shape.hidden_size, shape.num_attention_heads
    queries, keys = heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    sinks = (Tensor("self_attn.sinks", (heads,), "other"),) if shape.family.has_sinks else ()
    output = _linear("self_attn.o_proj", hidden, queries, shape.o_bias)
    if shape.fused_qkv:
        return (
            sinks
            + output
            + _linear("self_attn.qkv_proj", queries + 2 * keys, hidden, shape.qkv_bias)
        )
    return (
        sinks
        + _linear("self_attn.q_proj", queries, hidden, shape.qkv_bias)
        + _linear("self_attn.k_proj", keys, hidden, shape.qkv_bias)
        + _linear("self_attn.v_proj", keys, hidden, shape.qkv_bias)
        + output
        + _qk_norms(shape)
    )


def _qk_norms(shape: ModelShape) -> tuple[Tensor, ...]:
    if shape.qk_norm == "none":
        return ()
    spans_all = shape.qk_norm == "all_heads"
    queries = shape.head_dim * (shape.num_attention_heads if spans_all else 1)
    keys = shape.head_dim * (shape.num_key_value_heads if spans_all else 1)
    return _norm("self_attn.q_norm", queries), _norm("self_attn.k_norm", keys)


def _dense_mlp(shape: ModelShape) -> tuple[Tensor, ...]:
    hidden, width, has_bias = shape.hidden_size, shape.intermediate_size, shape.mlp_bias
    down = _linear("mlp.down_proj", hidden, width, has_bias)
    if shape.fused_gate_up:
        return _linear("mlp.gate_up_proj", 2 * width, hidden, has_bias) + down
    gate, up = (
        _linear(f"mlp.{name}", width, hidden, has_bias) for name in ("gate_proj", "up_proj")
    )
    return gate + up + down


def _expert_mlp(shape: ModelShape) -> tuple[Tensor, ...]:
    layout = shape.family.experts
    assert layout is not None, "only a family with experts has sparse layers"
    hidden, width, count = shape.hidden_size, shape.moe_intermediate_size, shape.num_experts
    sizes = {
        "gate_up_proj": (hidden, 2 * width) if layout.is_transposed else (2 * width, hidden),
        "gate_up_proj_bias": (2 * width,),
        "down_proj": (width, hidden) if layout.is_transposed else (hidden, width),
        "down_proj_bias": (hidden,),
    }
    experts = tuple(
        Tensor(f"mlp.experts.{name}", (count, *size), "expert")
        for name, size in sizes.items()
        if layout.has_bias or not name.endswith("_bias")
    )
    bias = (Tensor(f"mlp.{layout.router}.bias", (count,), "router"),) if layout.has_bias else ()
    router = (Tensor(f"mlp.{layout.router}.weight", (count, hidden), "router"), *bias)
    return router + experts if layout.router_is_first else experts + router


def _layer_norms(shape: ModelShape) -> tuple[Tensor, ...]:
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
    """The part on the text decoder; tying is a fact of the whole model (source: Gemma3Config)."""
    return {
        "tie_word_embeddings": config.get("tie_word_embeddings", True),
        **Config(config, {}).table("text_config"),
    }


def _num_key_value_heads(read: Config) -> int:
    """As many as query heads unless config.json names a divisor of them."""
    num_heads = read.whole("num_attention_heads")
    num_key_value_heads = read.whole_or_none("num_key_value_heads") or num_heads
    if num_heads % num_key_value_heads:
        raise ValueError(
            f"config.json: num_key_value_heads {num_key_value_heads} does not divide num_attention_heads {num_heads}"
        )
    return num_key_value_heads


def _head_dim(read: Config) -> int:
    """An equal share of hidden_size unless config.json or the family names it."""
    hidden, num_heads = read.whole("hidden_size"), read.whole("num_attention_heads")
    head_dim = read.whole_or_none("head_dim")
    if head_dim is None and hidden % num_heads:
        raise ValueError(
            f"config.json: num_attention_heads {num_heads} does not divide hidden_size {hidden}"
        )
    return head_dim or hidden // num_heads


def _layer_types(read: Config, family: Family, num_layers: int) -> tuple[LayerType, ...]:
    """The attention of each layer: full unless the model has a window and the layer uses it."""
    if read.whole_or_none("sliding_window") is None:
        return (_FULL,) * num_layers
    named = read.items_or_none("layer_types") if family.reads_layer_types else None
    if named is not None and len(named) != num_layers:
        raise ValueError(
            f"config.json: layer_types has {len(named)} items; it must have {num_layers}, one per layer"
        )
    slides = (
        family.slides(read, layer) if named is None else named[layer] == _SLIDING
        for layer in range(num_layers)
    )
    return tuple(_SLIDING if each else _FULL for each in slides)


def _num_experts(read: Config, family: Family) -> int:
    """Experts of a sparse layer: num_experts or, as other families call it, num_local_experts."""
    if family.experts is None:
        return 0
    key = "num_local_experts" if read.get("num_experts") is None else "num_experts"
    return read.whole(key, least=0)


def _dense_layers(read: Config, num_layers: int) -> tuple[int, ...]:
    """Layers whose MLP is dense in a mixture of experts (source: Qwen3MoeDecoderLayer)."""
    step = read.whole_or_none("decoder_sparse_step") or 1
    named_dense = read.items_or_none("mlp_only_layers") or ()
    return tuple(layer for layer in range(num_layers) if layer in named_dense or (layer + 1) % step)
