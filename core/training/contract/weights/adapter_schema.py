"""Schema of adapter_config.json: which settings of PEFT an adapter may have, and their values."""

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

from .files import is_shown

MAX_RANK = 4096
"""Largest rank of a job, too."""
MAX_NAMES = 10_000
NAME = re.compile(r"[A-Za-z0-9_.-]{1,256}", re.ASCII)


def _is_flag(value: object) -> bool:
    return value is None or isinstance(value, bool)


def _is_name(value: object) -> bool:
    return isinstance(value, str) and NAME.fullmatch(value) is not None


def _are_names(value: object) -> bool:
    """Return True for None, a plain name or a list of them."""
    if isinstance(value, list):
        return len(value) <= MAX_NAMES and all(map(_is_name, value))
    return value is None or _is_name(value)


def _are_listed(value: object) -> bool:
    return value is None or (isinstance(value, list) and _are_names(value))


def _is_rank(value: object) -> bool:
    return type(value) is int and 1 <= value <= MAX_RANK


def _is_scale(value: object) -> bool:
    return type(value) in (int, float) and 0 < float(str(value)) <= 1_000_000


def _are_named(check: Callable[[object], bool]) -> Callable[[object], bool]:
    """Return a check of None or of an object of plain names with values that pass another."""

    def are_named(value: object) -> bool:
        if value is None:
            return True
        if not isinstance(value, dict) or len(value) > MAX_NAMES:
            return False
        return all(_is_name(key) and check(each) for key, each in value.items())

    return are_named


def _is_one_of(*choices: object) -> Callable[[object], bool]:
    return lambda value: any(value is each or value == each for each in choices)


def _is_printable(value: object) -> bool:
    return value is None or (isinstance(value, str) and is_shown(value))


def _is_anything(value: object) -> bool:
    return True


def _is_dropout(value: object) -> bool:
    return type(value) in (int, float) and 0 <= float(str(value)) < 1


def _are_layers(value: object) -> bool:
    numbers = value if isinstance(value, list) else [value]
    return value is None or all(type(each) is int and 0 <= each < MAX_NAMES for each in numbers)


SCHEMA: Mapping[str, Callable[[object], bool]] = MappingProxyType(
    {
        "peft_type": _is_one_of("LORA"),
        "task_type": _is_one_of(None, "CAUSAL_LM", "SEQ_CLS"),
        "base_model_name_or_path": _is_printable,
        "revision": _is_printable,
        "inference_mode": _is_flag,
        "r": _is_rank,
        "lora_alpha": _is_scale,
        "lora_dropout": _is_dropout,
        "target_modules": lambda value: isinstance(value, str) or _are_names(value),
        "fan_in_fan_out": _is_one_of(None, False),
        "bias": _is_one_of("none"),
        "use_rslora": _is_flag,
        "use_dora": _is_flag,
        "modules_to_save": _are_names,
        "init_lora_weights": lambda value: isinstance(value, bool | str),
        "rank_pattern": _are_named(_is_rank),
        "alpha_pattern": _are_named(_is_scale),
        "ensure_weight_tying": _is_flag,
        "target_parameters": _are_listed,
        # They say which layers get an adapter, which the tensors say too.
        "exclude_modules": _are_names,
        "layers_to_transform": _are_layers,
        "layers_pattern": _are_names,
        # They say nothing that a training would read.
        "auto_mapping": _is_anything,
        "peft_version": _is_anything,
        "megatron_core": _is_anything,
        "qalora_group_size": _is_anything,
    }
)
"""Setting of PEFT -> check of its value. All others must be empty or off."""
