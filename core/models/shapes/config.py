"""Reads the values of a config.json, with one clear error for each that is missing or wrong."""

from collections.abc import Mapping
from dataclasses import dataclass

MAX_SIZE = 100_000_000
"""Above every size in a config.json; more is a broken file."""


@dataclass(frozen=True)
class Config:
    """A config.json over the defaults of its family. Every reader raises ValueError naming the key."""

    values: Mapping[str, object]
    defaults: Mapping[str, object]

    def get(self, key: str) -> object:
        """The value as it stands, its default if it is absent, or None."""
        return self.values.get(key, self.defaults.get(key))

    def whole(self, key: str, least: int = 1, most: int = MAX_SIZE) -> int:
        """A whole number."""
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self._wrong(key, f"a whole number from {least} to {most}")
        return value

    def whole_or_none(self, key: str) -> int | None:
        """A whole number, or None where it is absent or null."""
        return None if self.get(key) is None else self.whole(key)

    def number_or_none(self, key: str) -> float | None:
        """A number above 0, or None where it is absent or null."""
        value = self.get(key)
        if value is None:
            return None
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not 0 < value < MAX_SIZE
        ):
            raise self._wrong(key, "a number above 0")
        return float(value)

    def flag(self, key: str) -> bool:
        """True or false; false where it is absent or null."""
        value = self.get(key)
        if value is not None and not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return bool(value)

    def text(self, key: str) -> str:
        """A text."""
        value = self.get(key)
        if not isinstance(value, str):
            raise self._wrong(key, "a text")
        return value

    def items_or_none(self, key: str) -> tuple[object, ...] | None:
        """A list, or None where it is absent or null."""
        value = self.get(key)
        if value is not None and not isinstance(value, list | tuple):
            raise self._wrong(key, "a list")
        return None if value is None else tuple(value)

    def table(self, key: str) -> Mapping[str, object]:
        """An object with keys of its own."""
        value = self.get(key)
        if not isinstance(value, Mapping):
            raise self._wrong(key, "an object")
        return value

    def _wrong(self, key: str, wanted: str) -> ValueError:
        value = self.get(key)
        if value is None:
            return ValueError(f"config.json: {key} is missing; it must be {wanted}")
        return ValueError(f"config.json: {key} is {repr(value)[:60]}; it must be {wanted}")
