"""Values of Arrow tables as JSON has them: dates and decimals as text, bytes if they are text."""

import json
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import pyarrow as pa

PLAIN = (
    pa.types.is_null,
    pa.types.is_boolean,
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
)
LISTS = (
    pa.types.is_list,
    pa.types.is_large_list,
    pa.types.is_fixed_size_list,
    pa.types.is_list_view,
    pa.types.is_large_list_view,
)
BYTES = (
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_fixed_size_binary,
    pa.types.is_binary_view,
)
DATES = (pa.types.is_date, pa.types.is_time, pa.types.is_timestamp)
IsType = Callable[[pa.DataType], bool]


class JsonValues:
    """Values of one import, and how many of them JSON cannot hold."""

    def __init__(self) -> None:
        self.num_nan = 0
        self.num_bytes = 0
        """Values that are bytes and no text, such as pictures."""

    def converted(self, value: Any, type: pa.DataType) -> Any:
        """Return a value of an Arrow type, as pyarrow gives it to Python, as JSON has it."""
        if value is None:
            return None
        for is_type, convert in CONVERSIONS.items():
            if is_type(type):
                return convert(self, value, type)
        return value

    def without_nan(self, value: Any) -> Any:
        """Return a value with null in place of each NaN, which tables hold for what is missing."""
        if isinstance(value, float) and math.isnan(value):
            self.num_nan += 1
            return None
        if isinstance(value, dict):
            return {name: self.without_nan(each) for name, each in value.items()}
        if isinstance(value, list):
            return [self.without_nan(each) for each in value]
        return value

    def from_struct(self, value: Mapping[str, Any], type: pa.DataType) -> dict[str, Any]:
        """Return an object, its values converted."""
        return {name: self.converted(each, type.field(name).type) for name, each in value.items()}

    def from_list(self, value: list[Any], type: pa.DataType) -> list[Any]:
        """Return a list, its values converted."""
        return [self.converted(each, type.value_type) for each in value]

    def from_map(self, value: Any, type: pa.DataType) -> Any:
        """Return a map as an object, or as pairs if its keys are no texts or one stands twice."""
        pairs = [
            (self.converted(key, type.key_type), self.converted(each, type.item_type))
            for key, each in (value.items() if isinstance(value, dict) else value)
        ]
        keys = [key for key, _each in pairs]
        if all(isinstance(key, str) for key in keys) and len(set(keys)) == len(keys):
            return dict(pairs)
        return [list(pair) for pair in pairs]

    def from_bytes(self, value: bytes, _type: pa.DataType) -> str | dict[str, int]:
        """Return bytes as the text that old programs write so; of other bytes, only how many."""
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            self.num_bytes += 1
            return {"num_bytes": len(value)}


def is_any_of(kinds: tuple[IsType, ...], type: pa.DataType) -> bool:
    """Return whether a type is of one of these kinds."""
    return any(is_kind(type) for is_kind in kinds)


def is_plain(type: pa.DataType) -> bool:
    """Return whether pyarrow gives values of a type as JSON has them, lists and objects too."""
    if pa.types.is_struct(type):
        return all(is_plain(field.type) for field in type)
    if is_any_of(LISTS, type):
        return is_plain(type.value_type)
    if isinstance(type, pa.DictionaryType):
        return is_plain(type.value_type)
    return is_any_of(PLAIN, type)


def can_convert(type: pa.DataType) -> bool:
    """Return whether values of a type have a form in JSON."""
    if pa.types.is_struct(type):
        return all(can_convert(field.type) for field in type)
    if pa.types.is_map(type):
        return can_convert(type.key_type) and can_convert(type.item_type)
    if is_any_of(LISTS, type) or isinstance(type, pa.DictionaryType):
        return can_convert(type.value_type)
    return is_any_of((*PLAIN, *CONVERSIONS), type)


CONVERSIONS: Mapping[IsType, Callable[[JsonValues, Any, pa.DataType], Any]] = MappingProxyType(
    {
        pa.types.is_struct: JsonValues.from_struct,
        pa.types.is_map: JsonValues.from_map,
        **dict.fromkeys(LISTS, JsonValues.from_list),
        **dict.fromkeys(BYTES, JsonValues.from_bytes),
        **dict.fromkeys(DATES, lambda _self, value, _type: value.isoformat()),
        pa.types.is_decimal: lambda _self, value, _type: format(value, "f"),
        pa.types.is_duration: lambda _self, value, _type: value.total_seconds(),
        lambda type: isinstance(type, pa.JsonType): lambda _self, value, _type: json.loads(value),
        lambda type: isinstance(type, pa.DictionaryType): (
            lambda self, value, type: self.converted(value, type.value_type)
        ),
    }
)
"""Whether a type is of a kind -> its value as JSON has it."""
