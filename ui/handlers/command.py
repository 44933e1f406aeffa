"""Command line that does what the form says. Runs nothing."""

import shlex
from collections.abc import Mapping

from core.resolve import default_fields
from ui.handlers.answer import Values


def command_line(values: Values, place: Mapping[str, str] | None = None) -> str:
    """Return the command for the same job, with the fields that differ from its defaults, and
    where it trains."""
    is_demo = values["model"] == "demo" and values["dataset"] == "demo"
    defaults = default_fields("demo" if is_demo else "", values["method"], values["stage"])
    words = ["python app.py train"]
    if is_demo:
        words.append("--demo")
    words += place_words(place or {})
    for name, value in values.items():
        if value is not None and value != defaults[name]:
            text = str(value).lower() if isinstance(value, bool) else str(value)
            words.append(f"--{name.replace('_', '-')} {shlex.quote(text)}")
    return " ".join(words)


def place_words(place: Mapping[str, str]) -> list[str]:
    """Return the flags that say where a run trains, by the fields of a placement."""
    words = []
    for field, text in place.items():
        if (field, text) != ("nodes", "1"):
            flag = "on" if field == "engine" else field
            words.append(f"--{flag} {shlex.quote(text)}")
    return words
