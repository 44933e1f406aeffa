"""Rows inside of one JSON object: in a list under a key, or as its values. Changes nothing."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from core.dataset.reading.bare_values import Bare, bare_kind, is_conversation
from core.dataset.reading.columns import columns_as_rows
from core.training.contract.row_formats import ROW_FORMATS, find_row_format
from core.training.contract.stages import DEFAULT_STAGE

USUAL_LISTS = (
    "train",
    "training",
    "data",
    "rows",
    "examples",
    "samples",
    "records",
    "items",
    "instances",
    "dataset",
    "entries",
)
"""Keys under which people keep rows, in lower case, the likelier first."""
NAMES_OF_COLUMNS = frozenset(name for each in ROW_FORMATS for name in each.columns)
"""Keys of one row whose values may be conversations."""
MAX_OUTER_LEVELS = 4


@dataclass(frozen=True)
class RowsInside:
    """Place of the rows in an object."""

    path: tuple[str | None, ...] = ()
    """Keys that lead to them; None stands for every key that leads to a list."""
    is_object: bool = False
    """True if they are the values of an object, False for the elements of a list."""
    bare: Bare = ""
    others: tuple[str, ...] = ()
    """Other keys beside these of the path."""
    choices: tuple[str, ...] = ()
    """Lists that may all be the rows; then there is no path."""
    are_columns: bool = False
    """True if the values of the object are columns of rows."""


def find_rows_inside(value: Mapping[str, Any], depth: int = 0) -> RowsInside | None:
    """Return where the rows of an object are; None if it is a row itself, or holds none."""
    if depth == 0 and columns_as_rows(value, at_most=1):
        return RowsInside(are_columns=True)
    if depth > MAX_OUTER_LEVELS or _is_row(value):
        return None
    if _is_keyed(value):
        first = next(iter(value.values()))
        return RowsInside(is_object=True, bare=bare_kind([first]))
    lists = {key: each for key, each in value.items() if _is_list_of_rows(each)}
    if lists:
        return _find_among(lists, value)
    for key, each in value.items():
        if kind := _bare_list_kind(key, each, value):
            return RowsInside((key,), bare=kind, others=_without(value, key))
    return _find_deeper(value, depth)


def _is_row(value: Mapping[str, Any]) -> bool:
    """Return whether an object is a row, even without the lists in it that hold rows."""
    rest = {}
    for key, each in value.items():
        if not (_is_list_of_rows(each) and find_row_format(each[0], DEFAULT_STAGE)):
            rest[key] = each
    return find_row_format(rest, DEFAULT_STAGE) is not None


def _find_among(lists: Mapping[str, list[Any]], value: Mapping[str, Any]) -> RowsInside:
    """Return which of the lists in an object hold the rows."""
    if chosen := _likeliest(lists):
        return RowsInside((chosen,), others=_without(value, chosen))
    if frozenset.intersection(*(frozenset(each[0]) for each in lists.values())):
        others = tuple(name for name in value if name not in lists)
        return RowsInside((None,), others=others)
    return RowsInside(choices=tuple(lists))


def _find_deeper(value: Mapping[str, Any], depth: int) -> RowsInside | None:
    """Return the rows of the only object in an object, or of the one with a usual name."""
    objects = [key for key, each in value.items() if isinstance(each, dict)]
    usual = [name for name in USUAL_LISTS for key in objects if key.lower() == name]
    if len(objects) != 1 and not usual:
        return None
    key = objects[0] if len(objects) == 1 else _with_name(objects, usual[0])
    found = find_rows_inside(value[key], depth + 1)
    if found is None or found.choices:
        return found
    return replace(found, path=(key, *found.path), others=(*_without(value, key), *found.others))


def _is_keyed(value: Mapping[str, Any]) -> bool:
    """Return whether all values of an object are rows."""
    values = list(value.values())
    if len(values) > 1 and all(map(is_conversation, values)):
        return NAMES_OF_COLUMNS.isdisjoint(value)
    if not values or not all(isinstance(each, dict) and each for each in values):
        return False
    if len(values) == 1:
        return find_row_format(values[0], DEFAULT_STAGE) is not None
    shared = set(values[0]).intersection(*values)
    return bool(shared) and not all(map(str.isdigit, shared))  # else they are columns


def _is_list_of_rows(value: Any) -> bool:
    if not isinstance(value, list) or not value or is_conversation(value):
        return False
    return all(isinstance(each, dict) for each in value)


def _bare_list_kind(key: str, value: Any, beside: Mapping[str, Any]) -> Bare:
    """Return what a list of rows holds that are conversations, or texts in a list named so."""
    kind = bare_kind(value) if isinstance(value, list) else ""
    is_named = len(beside) == 1 or key.lower() in USUAL_LISTS
    return "" if kind == "texts" and not is_named else kind


def _likeliest(lists: Mapping[str, list[Any]]) -> str | None:
    """Return the list that holds the rows, if one of several certainly does."""
    if len(lists) == 1:
        return next(iter(lists))
    for name in USUAL_LISTS:
        for key in lists:
            if key.lower() == name:
                return key
    known = [key for key, rows in lists.items() if find_row_format(rows[0], DEFAULT_STAGE)]
    return known[0] if len(known) == 1 else None


def _with_name(keys: list[str], name: str) -> str:
    return next(key for key in keys if key.lower() == name)


def _without(value: Mapping[str, Any], key: str) -> tuple[str, ...]:
    return tuple(name for name in value if name != key)
