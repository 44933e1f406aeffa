"""Read a Modelfile by the rules of Ollama's own reader (parser/parser.go of ollama/ollama)."""

from collections.abc import Sequence

QUOTES = '"' * 3


def values_of(text: str, command: str) -> Sequence[str]:
    """Return the values of a command, such as `TEMPLATE` or `PARAMETER stop`, in their order.

    A value goes on over lines until its quotes are closed. Letters that cannot be seen are dropped.
    """
    found, lines = [], text.replace("\r", "\n").split("\n")
    while lines:
        name, value = _command(lines.pop(0))
        while _unquoted(value) is None:
            value += "\n" + lines.pop(0)
        if name == command:
            seen = "".join(letter for letter in value if letter.isprintable() or letter in "\n\t")
            found.append(str(_unquoted(seen)))
    return found


def _command(line: str) -> tuple[str, str]:
    words = line.split(" ", 1)
    if words[0] == "PARAMETER":
        name, _blank, value = words[1].partition(" ")
        return f"PARAMETER {name}", value
    return words[0], words[-1]


def _unquoted(value: str) -> str | None:
    """Return a value without its quotes, None while they are open."""
    value = value.strip()
    if not value.startswith(QUOTES):
        return value
    if len(value) >= 2 * len(QUOTES) and value.endswith(QUOTES):
        return value[len(QUOTES) : -len(QUOTES)]
    return None
