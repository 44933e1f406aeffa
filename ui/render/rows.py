"""Rows as HTML: one row with what counts for the loss, and how long all of them are. Escapes all text of people's."""

from collections.abc import Sequence
from html import escape

from core.dataset import Lengths
from core.dataset.preview import ShownRow, ShownText
from core.job import Problem
from ui.render import notice

MOST_CHARACTERS = 20_000
"""Of one row; a page of a book is some 3,000."""


def row(shown: ShownRow, num_rows: int) -> str:
    """A row through the model's own template; of a preference the rejected answer too."""
    title = f"Row {shown.index + 1:,} of {num_rows:,} · line {shown.line:,}"
    if shown.error:
        return f'<div class="shown-row"><p>{title}</p>{notice(shown.error, "bad")}</div>'
    kinds = {None: "", True: " · a wanted answer", False: " · an unwanted answer"}
    other = _text("rejected", shown.rejected) if shown.rejected else ""
    return f'<div class="shown-row">{_text(title + kinds[shown.label], shown)}{other}</div>'


def _text(title: str, shown: ShownText) -> str:
    """One text: what counts for the loss, what is only read, what max_length cuts off."""
    room = MOST_CHARACTERS
    spans = []
    for text, counts in (*shown.pieces, (shown.cut, None)):
        if text[:room]:
            spans.append(f'<span class="{_CLASSES[counts]}">{escape(text[:room])}</span>')
        room -= len(text[:room])
    counted = f"{shown.num_tokens:,} tokens, {shown.num_counted:,} of them count for the loss"
    legend = "".join(
        f'<i class="{kind}">{word}</i>'
        for kind, word in _LEGEND.items()
        if kind != "cut" or shown.cut
    )
    return f"<p>{title} · {counted} <b>{legend}</b></p><pre>{''.join(spans)}</pre>"


_CUT = ' class="cut"'
_CLASSES = {True: "counts", False: "masked", None: "cut"}
_LEGEND = {"counts": "learnt", "masked": "only read", "cut": "cut off"}


def lengths(found: Lengths, refused: Sequence[Problem], notes: Sequence[str]) -> str:
    """How long the rows are, what max_length does to them, and why they may not be trained on like that."""
    if not found.measured:
        return notice("Measuring the rows ...", "plain")
    parts = [
        f"Tokens a row: {found.p50:,} in the median, 95 % within {found.p95:,}, {found.max:,} at most"
    ]
    harms = (
        (found.truncated_rows, "cut"),
        (found.lost_answer_rows, "lose the whole answer"),
        (found.unanswered_rows, "without an answer to learn from"),
        (found.unreadable_rows, "cannot be measured"),
    )
    parts += [f"{number:,} {what}" for number, what in harms if number] or [
        f"none cut at {found.max_length:,}"
    ]
    if not found.is_complete:
        parts.append(f"measured {found.measured:,} of {found.rows:,}")
    is_harmful = found.lost_answer_rows or found.unanswered_rows or found.unreadable_rows
    said = notice(" · ".join(parts), "warned" if is_harmful else "plain")
    said += "".join(notice(f"{each.problem}; {each.fix}", "bad") for each in refused)
    return said + "".join(notice(note, "plain") for note in notes)


def histogram(found: Lengths) -> str:
    """How many rows have which length, with max_length as a line where it is within reach."""
    if not found.histogram:
        return ""
    most = max(each["rows"] for each in found.histogram)
    end = found.histogram[-1]["to"]
    bars = "".join(
        f'<span{_CUT if each["from"] >= found.max_length else ""} style="height:{100 * each["rows"] / most:.1f}%" '
        f'title="{each["rows"]:,} rows of {each["from"]:,} to {each["to"] - 1:,} tokens"></span>'
        for each in found.histogram
    )
    line = (
        f'<em style="left:{100 * found.max_length / end:.2f}%"></em>'
        if found.max_length < end
        else ""
    )
    label = (
        f"Lengths of {found.measured:,} rows: median {found.p50:,}, longest {found.max:,} tokens"
    )
    return (
        f'<div class="histogram"><div role="img" aria-label="{label}">{bars}{line}</div>'
        f"<p><span>{found.histogram[0]['from']:,}</span><b>tokens a row</b><span>{end:,}</span></p></div>"
    )
