"""Config: values of a config.json, with one clear error for each that is missing or wrong."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

MAX_SIZE = 100_000_000
"""Larger than any size in a config.json; more comes from a broken file."""
MAX_SHOWN = 60


def shown_value(value: object) -> str:
    """Return a value of a config.json as it stands there: true, null, "silu"; at most its start."""
    return json.dumps(value, ensure_ascii=False)[:MAX_SHOWN]


@dataclass(frozen=True)
class Config:
    """Values of a config.json over the defaults of its family. Readers raise ValueError."""

    values: Mapping[str, object]
    defaults: Mapping[str, object]

    def get(self, key: str) -> object:
        """Return the value, its default if it is missing, or None."""
        return self.values.get(key, self.defaults.get(key))

    def whole(self, key: str, least: int = 1, most: int = MAX_SIZE) -> int:
        """Return a whole number within these limits."""
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self._wrong(key, f"a whole number from {least} to {most}")
        return value

    def whole_or_none(self, key: str) -> int | None:
        """Return a whole number, or None if it is missing or null."""
        if self.get(key) is None:
            return None
        return self.whole(key)

    def number_or_none(self, key: str) -> float | None:
        """Return a number above 0, or None if it is missing or null."""
        value = self.get(key)
        if value is None:
            return None
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < MAX_SIZE:
            return float(value)
        raise self._wrong(key, "a number above 0")

    def flag(self, key: str) -> bool:
        """Return true or false; false if it is missing or null."""
        value = self.get(key)
        if value is not None and not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return bool(value)

    def text(self, key: str) -> str:
        """Return a text."""
        value = self.get(key)
        if not isinstance(value, str):
            raise self._wrong(key, "a text")
        return value

    def items_or_none(self, key: str) -> tuple[object, ...] | None:
        """Return a list, or None if it is missing or null."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, list | tuple):
            raise self._wrong(key, "a list")
        return tuple(value)

    def table(self, key: str) -> Mapping[str, object]:
        """Return a nested object."""
        value = self.get(key)
        if not isinstance(value, Mapping):
            raise self._wrong(key, "an object")
        return value

    def _wrong(self, key: str, wanted: str) -> ValueError:
        value = self.get(key)
        if value is None:
            return ValueError(f"config.json: {key} is missing; it must be {wanted}")
        return ValueError(f"config.json: {key} is {shown_value(value)}; it must be {wanted}")
