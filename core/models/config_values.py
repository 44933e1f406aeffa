"""Hold the values of a config.json against what transformers takes, so that a wrong one is refused
before the start. Reads the sources of transformers; never imports it."""

import ast
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from types import MappingProxyType

from core.models.shapes import shown_value

ACTIVATIONS = frozenset(
    [
        "gelu",
        "gelu_10",
        "gelu_accurate",
        "gelu_fast",
        "gelu_new",
        "gelu_python",
        "gelu_python_tanh",
        "gelu_pytorch_tanh",
        "hardswish",
        "laplace",
        "leaky_relu",
        "linear",
        "mish",
        "prelu",
        "quick_gelu",
        "relu",
        "relu2",
        "relu6",
        "sigmoid",
        "silu",
        "sqrtsoftplus",
        "swish",
        "tanh",
        "xielu",
    ]
)
"""Names of ACT2FN in transformers 5.23 (activations.py)."""
FLOAT_TYPES = ("float32", "bfloat16", "float16", "float64", "float8_e4m3fn", "float8_e5m2")
ROPE_KEYS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "default": (),
        "linear": ("factor",),
        "dynamic": ("factor",),
        "yarn": ("factor",),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
        "longrope": ("short_factor", "long_factor"),
        "su": ("short_factor", "long_factor"),
        "proportional": (),
        "axial": (),
        "mrope": (),
    }
)
"""Scaling of rotary embeddings -> keys that it needs (modeling_rope_utils.py). Phi calls longrope
su, and mrope is the default with sections."""
LONG_ROPES = frozenset({"longrope", "su"})
"""Scalings with one factor for each pair of rotated numbers."""
TYPES: Mapping[str, type] = MappingProxyType(
    {
        "int": int,
        "float": float,
        "bool": bool,
        "str": str,
        "dict": dict,
        "list": list,
        "tuple": list,
        "None": type(None),
    }
)
"""Annotation in a configuration class -> type of a value of JSON. Any other takes anything."""
WANTED: Mapping[str, str] = MappingProxyType(
    {
        "int": "a whole number",
        "float": "a number written with a point",
        "bool": "true or false",
        "str": "a text",
        "dict": "an object",
        "list": "a list of such values",
        "tuple": "a list of such values",
        "None": "null",
    }
)


@dataclass(frozen=True)
class Rule:
    """Rule for the values of some keys."""

    keys: frozenset[str]
    is_kept: Callable[[object], bool]
    wanted: str
    """What the value must be, to complete a sentence."""


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_above_zero(value: object) -> bool:
    return isinstance(value, int | float) and _is_number(value) and value > 0


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and _is_number(value) and 0 <= value < 1


def _is_part_of_one(value: object) -> bool:
    return isinstance(value, int | float) and _is_number(value) and 0 <= value <= 1


def _is_float_type(value: object) -> bool:
    return isinstance(value, str) and value.removeprefix("torch.") in FLOAT_TYPES


def _is_activation(value: object) -> bool:
    return isinstance(value, str) and value in ACTIVATIONS


RULES = (
    Rule(
        frozenset(
            [
                "rms_norm_eps",
                "layer_norm_eps",
                "layer_norm_epsilon",
                "norm_eps",
                "rope_theta",
                "rope_local_base_freq",
                "query_pre_attn_scalar",
                "logits_scaling",
                "attention_multiplier",
                "residual_multiplier",
                "embedding_multiplier",
            ]
        ),
        _is_above_zero,
        "a number above 0",
    ),
    Rule(
        frozenset(
            [
                "attention_dropout",
                "attn_pdrop",
                "resid_pdrop",
                "embd_pdrop",
                "hidden_dropout",
                "residual_dropout",
                "embedding_dropout",
            ]
        ),
        _is_share,
        "a number from 0 to below 1",
    ),
    Rule(frozenset({"initializer_range"}), _is_part_of_one, "a number from 0 to 1"),
    Rule(
        frozenset({"dtype", "torch_dtype"}),
        _is_float_type,
        f"one of {', '.join(FLOAT_TYPES)}",
    ),
    Rule(
        frozenset({"hidden_act", "hidden_activation", "activation_function"}),
        _is_activation,
        "an activation of transformers such as silu or gelu_pytorch_tanh",
    ),
)
"""Rules for keys that mean the same in every architecture. A missing or null value is fine."""


def require_sound_values(config: Mapping[str, object]) -> None:
    """Raise ValueError naming a key with a wrong value in a config.json or its text_config."""
    text_config = config.get("text_config")
    parts = [config, text_config] if isinstance(text_config, Mapping) else [config]
    for part in parts:
        for problem in _problems(part):
            raise ValueError(f"config.json: {problem}")


def _problems(config: Mapping[str, object]) -> Iterator[str]:
    types = declared_types(str(config.get("model_type")))
    for key, value in config.items():
        if key in types and not _fits(value, types[key]):
            yield _wrong(key, value, _in_words(types[key]))
        for rule in RULES:
            if key in rule.keys and value is not None and not rule.is_kept(value):
                yield _wrong(key, value, rule.wanted)
    yield from _problems_of_layers(config)
    yield from _problems_of_padding(config)
    for key in ("rope_scaling", "rope_parameters"):
        yield from _problems_of_rope(key, config.get(key), config)


def _problems_of_layers(config: Mapping[str, object]) -> Iterator[str]:
    named, num_layers = config.get("layer_types"), config.get("num_hidden_layers")
    if named is None or not isinstance(num_layers, int):
        return
    if not isinstance(named, list):
        yield _wrong("layer_types", named, "a list of names")
        return
    if len(named) != num_layers:
        yield f"layer_types has {len(named)} items; it must have {num_layers}, one for each layer"
    for name in named:
        if not isinstance(name, str):
            yield _wrong("layer_types", name, "a list of names")


def _problems_of_padding(config: Mapping[str, object]) -> Iterator[str]:
    padding, num_tokens = config.get("pad_token_id"), config.get("vocab_size")
    if isinstance(padding, int) and isinstance(num_tokens, int) and padding >= num_tokens:
        yield _wrong("pad_token_id", padding, f"below vocab_size, which is {num_tokens}")


def _problems_of_rope(key: str, value: object, config: Mapping[str, object]) -> Iterator[str]:
    """Yield what is wrong with a scaling of rotary embeddings, or with one for each layer type."""
    if value is None:
        return
    if not isinstance(value, Mapping):
        yield _wrong(key, value, "an object")
        return
    kinds = [value.get(name) for name in ("rope_type", "type") if value.get(name) is not None]
    is_nested = not kinds and value and all(_is_part(each) for each in value.values())
    if is_nested:
        for name, part in value.items():
            yield from _problems_of_rope(f"{key} of {name}", part, config)
        return
    for kind in kinds:
        if not isinstance(kind, str) or kind not in ROPE_KEYS:
            yield _wrong(f"the rope_type of {key}", kind, f"one of {', '.join(ROPE_KEYS)}")
            return
    if kinds and str(kinds[0]) in LONG_ROPES:
        yield from _problems_of_factors(key, value, config)
    for needed in ROPE_KEYS[str(kinds[0])] if kinds else ():
        yield from _problems_of_rope_key(key, str(kinds[0]), needed, value)
    theta = value.get("rope_theta")
    if theta is not None and not _is_above_zero(theta):
        yield _wrong(f"rope_theta of {key}", theta, "a number above 0")


def _problems_of_rope_key(
    key: str, kind: str, needed: str, scaling: Mapping[str, object]
) -> Iterator[str]:
    """Yield what is wrong with a number, or a list of numbers, that a scaling needs."""
    value = scaling.get(needed)
    if value is None:
        yield f"{key} is of the type {kind}, but has no {needed}"
    elif kind not in LONG_ROPES:
        if not _is_above_zero(value):
            yield _wrong(f"{needed} of {key}", value, "a number above 0")
    elif not isinstance(value, list) or not all(map(_is_above_zero, value)):
        yield _wrong(f"{needed} of {key}", value, "a list of numbers above 0")


def _problems_of_factors(
    key: str, scaling: Mapping[str, object], config: Mapping[str, object]
) -> Iterator[str]:
    """Yield what is wrong with the number of factors, one for each pair of rotated numbers."""
    wanted = _num_rotated_pairs(scaling, config)
    for name in ("short_factor", "long_factor"):
        factors = scaling.get(name)
        if wanted and isinstance(factors, list) and len(factors) != wanted:
            yield f"{name} of {key} has {len(factors)} numbers; it must have {wanted}"


def _num_rotated_pairs(scaling: Mapping[str, object], config: Mapping[str, object]) -> int | None:
    """Return half of the numbers of a head that are rotated; None if it is unclear."""
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    size = config.get("head_dim")
    # Some configs hold the share beside the factors, some beside the sizes.
    share = scaling.get("partial_rotary_factor", config.get("partial_rotary_factor", 1))
    if size is None and isinstance(hidden, int) and isinstance(heads, int) and heads > 0:
        size = hidden // heads
    if not isinstance(size, int) or not isinstance(share, int | float):
        return None
    return int(size * share) // 2


def _is_part(value: object) -> bool:
    return value is None or isinstance(value, Mapping)


@cache
def declared_types(model_type: str) -> Mapping[str, ast.expr]:
    """Return key -> annotation in the configuration class of a model type.

    Empty for a type that transformers has not, or keeps elsewhere.
    """
    spec = find_spec("transformers")
    name = model_type.replace("-", "_")
    if spec is None or spec.origin is None or not name.isidentifier():
        return {}
    sources = Path(spec.origin).parent
    for place in (name, name.removesuffix("_text")):
        for each in _classes_in(sources / "models" / place / f"configuration_{place}.py"):
            if _is_class_of(each, model_type):
                base = _classes_in(sources / "configuration_utils.py")
                of_base = [one for one in base if one.name == "PreTrainedConfig"]
                return dict(chain.from_iterable(map(_annotations, [*of_base, each])))
    return {}


def _classes_in(path: Path) -> list[ast.ClassDef]:
    """Return the classes of a source file; none if it cannot be read."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return []
    return [each for each in tree.body if isinstance(each, ast.ClassDef)]


def _is_class_of(statement: ast.ClassDef, model_type: str) -> bool:
    """Return True for a class with a line such as `model_type = "llama"`."""
    return any(
        isinstance(each, ast.Assign)
        and isinstance(each.targets[0], ast.Name)
        and each.targets[0].id == "model_type"
        and isinstance(each.value, ast.Constant)
        and each.value.value == model_type
        for each in statement.body
    )


def _annotations(statement: ast.ClassDef) -> Iterator[tuple[str, ast.expr]]:
    for each in statement.body:
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
            yield each.target.id, each.annotation


def _choices(annotation: ast.expr) -> list[ast.expr]:
    """Return the types that an annotation such as `int | list[int] | None` allows."""
    if isinstance(annotation, ast.BinOp):
        return _choices(annotation.left) + _choices(annotation.right)
    return [annotation]


def _name_of(choice: ast.expr) -> str:
    """Return `list` for `list[int]`; Any for what is no plain type."""
    if isinstance(choice, ast.Subscript):
        return _name_of(choice.value)
    if isinstance(choice, ast.Constant) and choice.value is None:
        return "None"
    return choice.id if isinstance(choice, ast.Name) else "Any"


def _fits(value: object, annotation: ast.expr) -> bool:
    """Return True if a value of JSON has a type that an annotation allows."""
    return any(_is_of_type(value, choice) for choice in _choices(annotation))


def _is_of_type(value: object, choice: ast.expr) -> bool:
    name = _name_of(choice)
    is_infinite = name == "float" and isinstance(value, dict) and "__float__" in value
    if name not in TYPES or is_infinite:  # how transformers writes what JSON has no number for
        return True
    is_no_number = name in ("int", "float") and isinstance(value, bool)
    if not isinstance(value, TYPES[name]) or is_no_number:
        return False
    if isinstance(value, list) and isinstance(choice, ast.Subscript):
        items = choice.slice.elts if isinstance(choice.slice, ast.Tuple) else [choice.slice]
        return all(any(_fits(each, item) for item in items) for each in value)
    return True


def _in_words(annotation: ast.expr) -> str:
    names = [_name_of(each) for each in _choices(annotation)]
    words = [WANTED[each] for each in names if each in WANTED and each != "None"]
    return " or ".join(dict.fromkeys(words))


def _wrong(key: str, value: object, wanted: str) -> str:
    return f"{key} is {shown_value(value)}; it must be {wanted}"
