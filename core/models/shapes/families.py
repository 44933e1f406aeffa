"""FAMILIES: facts of each architecture that its config.json does not hold. Holds no arithmetic.

Each fact is that of the class in transformers 5.23 (models/<model_type>/modeling_*.py and
configuration_*.py).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

from core.models.shapes.config import Config

QkNorm = Literal["none", "per_head", "all_heads"]
PRE_NORMS = ("input_layernorm", "post_attention_layernorm")
POST_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")
SANDWICH_NORMS = (*PRE_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")


def _defaults(**values: object) -> Mapping[str, object]:
    """Return values of config.json keys that may be missing."""
    return MappingProxyType(values)


@dataclass(frozen=True)
class Experts:
    """Storage and weighting of a mixture of experts."""

    router: str
    """Name of the module that chooses the experts."""
    router_is_first: bool = True
    """True if the router comes before the experts in the order of the parameters."""
    width_key: str = "intermediate_size"
    """Key of config.json for the width of one expert."""
    has_bias: bool = False
    is_transposed: bool = False
    """True if the matrix of an expert is stored [in, out]."""
    older_names: tuple[tuple[str, str], ...] = (
        ("gate_proj", "gate_up_proj"), ("up_proj", "gate_up_proj"), ("down_proj", "down_proj"),
    )  # fmt: skip
    """(layer of one expert, parameter of all experts that holds it): names that PEFT takes for
    parameters (_MOE_TARGET_MODULE_MAPPING in peft/utils/transformers_weight_conversion.py)."""
    weighs_in_float32: bool = False
    """True if routing weights keep the precision of the softmax, which widens the output too."""


# Which layers attend only to the last `sliding_window` tokens: one function for each pattern.


def _no_layer(config: Config, layer: int) -> bool:
    return False


def _every_layer(config: Config, layer: int) -> bool:
    return True


def _all_but_every_nth(config: Config, layer: int) -> bool:
    return (layer + 1) % config.whole("sliding_window_pattern") != 0


def _every_layer_if_on(config: Config, layer: int) -> bool:
    return config.flag("use_sliding_window")


def _late_layers_if_on(config: Config, layer: int) -> bool:
    return config.flag("use_sliding_window") and layer >= config.whole("max_window_layers", least=0)


def _layers_without_rope_if_on(config: Config, layer: int) -> bool:
    has_rope = config.items_or_none("no_rope_layers") or ()
    if layer < len(has_rope):
        lacks_rope = not has_rope[layer]
    else:
        lacks_rope = (layer + 1) % 4 == 0
    return config.flag("use_sliding_window") and lacks_rope


@dataclass(frozen=True)
class Family:
    """Architecture facts that no config.json states. The defaults describe Llama."""

    qkv_bias: bool | None = None
    """True if queries, keys and values have a bias; None: read `attention_bias`."""
    o_bias: bool | None = None
    """True if the output projection of the attention has a bias; None: read `attention_bias`."""
    mlp_bias: bool | None = False
    """True if the MLP has biases; None: read `mlp_bias`."""
    qk_norm: QkNorm = "none"
    """Span of the norm of queries and keys: one head, or all heads at once."""
    layer_norms: tuple[str, ...] = PRE_NORMS
    norm_scales_in_float32: bool = False
    """True if a norm multiplies by its weight before casting back to the precision of its input."""
    scales_residuals: bool = False
    """True if the output of a sublayer is multiplied by a constant before it is added."""
    fused_projections: bool = False
    """True if one layer makes q, k and v, and one makes gate and up."""
    has_rope_per_layer_type: bool = False
    """True if sliding layers have other rotary tables than full layers."""
    has_sinks: bool = False
    """True if attention has one learned sink logit per head."""
    experts: Experts | None = None
    slides: Callable[[Config, int], bool] = _no_layer
    """Whether a layer attends only to the last `sliding_window` tokens."""
    reads_layer_types: bool = False
    """True if a `layer_types` list in config.json overrides `slides`."""
    is_multimodal: bool = False
    """True if config.json keeps the text decoder under `text_config`."""
    hidden_act: str | None = None
    """Activation of the MLP, if it ignores config.json."""
    defaults: Mapping[str, object] = field(default_factory=_defaults, hash=False)
    """Values of keys that config.json may leave out."""


_LLAMA = Family(mlp_bias=None)
_MISTRAL = Family(
    qkv_bias=False,
    o_bias=False,
    slides=_every_layer,
    defaults=_defaults(num_key_value_heads=8),
)
_QWEN2 = Family(
    qkv_bias=True,
    o_bias=False,
    slides=_late_layers_if_on,
    reads_layer_types=True,
    defaults=_defaults(num_key_value_heads=32, sliding_window=4096, max_window_layers=28),
)
_QWEN3 = Family(
    qk_norm="per_head",
    slides=_late_layers_if_on,
    reads_layer_types=True,
    defaults=_defaults(**_QWEN2.defaults, head_dim=128),
)
_GEMMA = Family(
    norm_scales_in_float32=True,
    hidden_act="gelu_pytorch_tanh",
    defaults=_defaults(tie_word_embeddings=True, head_dim=256, num_key_value_heads=16),
)
_GEMMA2 = replace(
    _GEMMA,
    layer_norms=SANDWICH_NORMS,
    slides=_all_but_every_nth,
    reads_layer_types=True,
    defaults=_defaults(
        tie_word_embeddings=True,
        head_dim=256,
        num_key_value_heads=4,
        sliding_window=4096,
        sliding_window_pattern=2,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
    ),
)
_GEMMA3 = replace(
    _GEMMA2,
    qk_norm="per_head",
    has_rope_per_layer_type=True,
    defaults=_defaults(
        tie_word_embeddings=True,
        head_dim=256,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=262_208,
        max_position_embeddings=131_072,
        sliding_window=4096,
        sliding_window_pattern=6,
    ),
)
_GPT_OSS = Family(
    norm_scales_in_float32=True,
    has_sinks=True,
    experts=Experts(router="router", has_bias=True, is_transposed=True, older_names=()),
    slides=_all_but_every_nth,
    reads_layer_types=True,
    defaults=_defaults(
        attention_bias=True,
        num_key_value_heads=8,
        head_dim=64,
        sliding_window=128,
        sliding_window_pattern=2,
    ),
)
_MIXTRAL_EXPERTS = Experts(
    router="gate",
    older_names=(("w1", "gate_up_proj"), ("w3", "gate_up_proj"), ("w2", "down_proj")),
    weighs_in_float32=True,
)

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "llama": _LLAMA,
        "mistral": _MISTRAL,
        "mixtral": replace(_MISTRAL, experts=_MIXTRAL_EXPERTS),
        "qwen2": _QWEN2,
        "qwen3": _QWEN3,
        "qwen3_moe": replace(
            _QWEN3,
            experts=Experts("gate", router_is_first=False, width_key="moe_intermediate_size"),
            slides=_every_layer_if_on,
            reads_layer_types=False,
            defaults=_defaults(num_key_value_heads=4, sliding_window=4096),
        ),
        "gemma": _GEMMA,
        "gemma2": _GEMMA2,
        "gemma3_text": _GEMMA3,
        "gemma3": replace(_GEMMA3, is_multimodal=True),
        "phi3": Family(qkv_bias=False, o_bias=False, fused_projections=True, slides=_every_layer),
        "smollm3": replace(
            _LLAMA,
            slides=_layers_without_rope_if_on,
            reads_layer_types=True,
            defaults=_defaults(tie_word_embeddings=True, num_key_value_heads=4),
        ),
        "olmo2": Family(qk_norm="all_heads", layer_norms=POST_NORMS, norm_scales_in_float32=True),
        "granite": replace(_LLAMA, scales_residuals=True),
        "gpt_oss": _GPT_OSS,
    }
)
"""model_type of config.json -> family."""
