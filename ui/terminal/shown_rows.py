"""Rows in a terminal as the model will see them: text that counts for the loss is marked."""

from collections.abc import Sequence

from rich.text import Text

from core.dataset import counted
from core.dataset.preview import ShownRow, ShownText
from ui.terminal.printing import out

COUNTED = "bold green"
CUT = "dim strike"
LEGEND_IN_COLOUR = "Green text counts for the loss."
LEGEND_IN_MARKS = "Text between {+ and +} counts for the loss."


def print_rows(rows: Sequence[ShownRow]) -> None:
    """Print rows, in colour where there is a terminal with colours."""
    in_colour = out.is_terminal and not out.no_color
    out.print(LEGEND_IN_COLOUR if in_colour else LEGEND_IN_MARKS, style="dim")
    for row in rows:
        if row.error:
            continue  # said on the standard error
        out.print(f"\nLine {row.line:,}: {_sizes(row)}", style="bold")
        out.print(_marked(row, in_colour))
        if row.rejected:
            out.print(f"Rejected: {_sizes(row.rejected)}", style="bold")
            out.print(_marked(row.rejected, in_colour))
        if row.label is not None:
            verdict = "wanted" if row.label else "not wanted"
            out.print(f"Label: {verdict}", style="bold")


def _sizes(text: ShownText) -> str:
    return f"{counted(text.num_tokens, 'token')}, {text.num_counted:,} count for the loss"


def _marked(text: ShownText, in_colour: bool) -> Text:
    marked = Text()
    for piece, counts in text.pieces:
        shown = printable(piece)
        if counts and not in_colour:
            shown = "{+" + shown + "+}"
        marked.append(shown, style=COUNTED if counts else "")
    if text.cut:
        shown = printable(text.cut)
        marked.append(shown if in_colour else f"{{-cut off: {shown}-}}", style=CUT)
    return marked


def printable(text: str) -> str:
    """Return a text without characters that would control the terminal."""
    return "".join(
        each if each.isprintable() or each in "\n\t" else each.encode("unicode_escape").decode()
        for each in text
    )
