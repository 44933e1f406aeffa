"""Read JSON values as the types that the fields of a dataclass declare."""

from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from functools import cache
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

LARGEST_NUMBER = 1e300
"""Larger numbers, infinity and NaN are damage: nothing can be computed with them."""


class WrongType(TypeError):
    """JSON value that is not of the declared type."""


class KeyTwice(ValueError):
    """Key that occurs twice in one JSON object: readers differ in which of its values counts."""

    def __init__(self, key: str):
        super().__init__(f"the key {key!r} occurs twice")
        self.key = key


def with_each_key_once(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    """Return the object of a JSON text, as an `object_pairs_hook`. Raises KeyTwice."""
    values: dict[str, object] = {}
    for key, value in pairs:
        if key in values:
            raise KeyTwice(key)
        values[key] = value
    return values


def types_of(cls: Any) -> Mapping[str, Any]:
    """Return the declared type of each field of a dataclass."""
    return _cached_types_of(cls)


@cache
def _cached_types_of(cls: Any) -> Mapping[str, Any]:
    return MappingProxyType(get_type_hints(cls))


def value_as(declared: Any, value: object) -> Any:
    """Return a JSON value as a declared type; lists become tuples. Raises WrongType.

    Types: bool, int, float, str, Literal, tuple[T, ...], Mapping[str, T], T | None, and dataclasses
    of these.
    """
    origin = get_origin(declared)
    if origin is Literal:
        return _checked(value, value in get_args(declared))
    if origin is UnionType:
        return None if value is None else value_as(_without_none(declared), value)
    if origin is tuple:
        items = _checked(value, isinstance(value, list))
        return tuple(value_as(get_args(declared)[0], item) for item in items)
    if origin is Mapping:
        entries = _checked(value, isinstance(value, dict))
        return {name: value_as(get_args(declared)[1], entry) for name, entry in entries.items()}
    if is_dataclass(declared):
        return _dataclass_as(declared, value)
    return _plain_value_as(declared, value)


def _dataclass_as(cls: Any, value: object) -> Any:
    """Return a JSON object as a dataclass; it must hold all fields and no others."""
    types = types_of(cls)
    entries = _checked(value, isinstance(value, dict))
    _checked(value, entries.keys() == types.keys())
    return cls(**{name: value_as(types[name], entry) for name, entry in entries.items()})


def _plain_value_as(declared: Any, value: object) -> Any:
    if declared not in (int, float):
        return _checked(value, isinstance(value, declared))
    # JSON has one kind of number, and True is an int in Python.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    number = _checked(value, is_number)
    _checked(number, abs(number) < LARGEST_NUMBER)
    if declared is int:
        _checked(number, number == int(number))
    return declared(number)


def _without_none(declared: Any) -> Any:
    """Return T for T | None."""
    (kept,) = (each for each in get_args(declared) if each is not NoneType)
    return kept


def _checked(value: Any, is_right: bool) -> Any:
    if not is_right:
        raise WrongType(value)
    return value
