"""What the terminal's commands print with: tables, JSON, and bad input as one line a problem. Knows no command."""

import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.table import Table

from core.job import TailorError

out = Console(highlight=False, soft_wrap=True, markup=False)


class Failure:
    """The exit code for a command that did not come to its end."""

    code = 2


@contextmanager
def bad_input() -> Iterator[Failure]:
    """Prints one clear line per problem on stderr instead of a traceback."""
    failure = Failure()
    try:
        yield failure
    except TailorError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
    except BrokenPipeError:  # `app.py runs | head` has seen enough
        os._exit(0)
    except OSError as error:
        print(f"{error.filename or 'disk'}: {error.strerror}", file=sys.stderr)
        failure.code = 1


def print_json(value: Any) -> None:
    """One JSON value on stdout."""
    print(json.dumps(value, indent=2))


def table(titles: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> Table:
    """Rows under titles; sizes in GiB stand to the right."""
    made = Table(box=None, padding=(0, 2, 0, 0), show_header=any(titles))
    for title in titles:
        made.add_column(title, justify="right" if "GiB" in title else "left", overflow="fold")
    for row in rows:
        made.add_row(*map(str, row))
    return made
