"""Print tables, JSON and errors. Knows no command."""

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from core.job import Problem, TailorError
from ui.terminal.usage import flag_of

MAX_PROBLEMS = 20
"""Problems of a file that are printed; --json has more."""
CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))} | {
    ord("\t"): "\t",
    ord("\n"): "\n",
    ord("\r"): "",
}
"""Characters that control a terminal, and what is printed in their place."""


def harmless(text: str) -> str:
    """Return a text that cannot control the terminal, such as an answer of a model."""
    return text.translate(CONTROLS)


class PlainConsole(Console):
    """Console whose texts cannot control the terminal. Its own styles still do."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a text with its style, without control characters."""
        return super().render_str(harmless(text), **options)


out = PlainConsole(highlight=False, soft_wrap=True, markup=False)


def report_errors(command: Callable[[], int], takes_flag: Callable[[str], bool]) -> int:
    """Run a command and return its exit code. Print one line on stderr for each problem.

    `takes_flag` says whether the command has the flag of a job field.
    """
    try:
        return command()
    except TailorError as error:
        say(*(with_flags(problem, takes_flag) for problem in error.problems))
        return 2
    except BrokenPipeError:  # `app.py runs | head` has read enough
        os._exit(0)
    except OSError as error:
        say(f"{error.filename or 'disk'}: {error.strerror}")
        return 1


def with_flags(problem: Problem, takes_flag: Callable[[str], bool]) -> str:
    """Return a problem, with the flags that cure it where they are known."""
    if problem.cure is None:
        return str(problem)
    flags = " ".join(
        f"{flag_of(name)} {shlex.quote(value)}"
        for name, value in problem.cure.change.items()
        if takes_flag(name)
    )
    return f"{problem}: {flags}" if flags else str(problem)


def say(*lines: object) -> None:
    """Print lines on stderr."""
    for line in lines:
        print(harmless(str(line)), file=sys.stderr)


def print_json(value: Any) -> None:
    """Print one JSON value."""
    print(json.dumps(value, indent=2))


def table(titles: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> Table:
    """Return rows under titles, with columns of memory aligned to the right."""
    result = Table(box=None, padding=(0, 2, 0, 0), show_header=any(titles))
    for title in titles:
        justify: Literal["left", "right"] = "left"
        if title in ("memory", "predicted", "measured"):
            justify = "right"
        result.add_column(title, justify=justify, overflow="fold")
    for row in rows:
        result.add_row(*map(str, row))
    return result


def wide_table(titles: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> str:
    """Return rows under titles with each value in one piece, so that an id can be copied.

    A terminal that is narrower breaks the lines.
    """
    lines = [titles, *(tuple(map(str, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = []
    for line in lines:
        cells = [value.ljust(width) for value, width in zip(line, widths, strict=True)]
        padded.append("  ".join(cells).rstrip())
    return "\n".join(padded)
