"""Rows as HTML: one row with what counts for the loss, and how long all of them are. Escapes all text of people's."""

from html import escape

from core.preview import Lengths, ShownRow
from ui.render import notice

MOST_CHARACTERS = 20_000
"""Of one row; a page of a book is some 3,000."""


def row(shown: ShownRow, num_rows: int) -> str:
    """A row through the model's own template: counted for the loss, masked, and cut off by max_length."""
    title = f"Row {shown.index + 1:,} of {num_rows:,} · line {shown.line:,}"
    if shown.error:
        return f'<div class="shown-row"><p>{title}</p>{notice(shown.error, "bad")}</div>'
    room = MOST_CHARACTERS
    spans = []
    for text, counts in (*shown.pieces, (shown.cut, None)):
        if text[:room]:
            spans.append(f'<span class="{_CLASSES[counts]}">{escape(text[:room])}</span>')
        room -= len(text[:room])
    counted = f"{shown.num_tokens:,} tokens, {shown.num_counted:,} of them count for the loss"
    legend = "".join(f'<i class="{kind}">{word}</i>' for kind, word in _LEGEND.items() if kind != "cut" or shown.cut)
    return f'<div class="shown-row"><p>{title} · {counted} <b>{legend}</b></p><pre>{"".join(spans)}</pre></div>'


_CLASSES = {True: "counts", False: "masked", None: "cut"}
_LEGEND = {"counts": "learnt", "masked": "only read", "cut": "cut off"}


def lengths(found: Lengths, max_length: int) -> str:
    """One line: how long the rows are and what max_length does to them."""
    if not found.measured:
        return notice("Measuring the rows ...", "plain")
    parts = [f"Tokens a row: {found.p50:,} in the median, 95 % within {found.p95:,}, {found.max:,} at most"]
    harms = (
        (found.truncated_rows, "cut"),
        (found.lost_answer_rows, "lose the whole answer"),
        (found.unanswered_rows, "without an answer to learn from"),
        (found.unreadable_rows, "cannot be measured"),
    )
    parts += [f"{number:,} {what}" for number, what in harms if number] or [f"none cut at {max_length:,}"]
    if not found.is_complete:
        parts.append(f"measured {found.measured:,} of {found.rows:,}")
    is_harmful = found.lost_answer_rows or found.unanswered_rows or found.unreadable_rows
    return notice(" · ".join(parts), "warned" if is_harmful else "plain")


def histogram(found: Lengths, max_length: int) -> str:
    """How many rows have which length, with max_length as a line where it is within reach."""
    if not found.histogram:
        return ""
    most = max(each["rows"] for each in found.histogram)
    end = found.histogram[-1]["to"]
    bars = "".join(
        f'<span class="{"cut" if each["from"] >= max_length else ""}" style="height:{100 * each["rows"] / most:.1f}%" '
        f'title="{each["rows"]:,} rows of {each["from"]:,} to {each["to"] - 1:,} tokens"></span>'
        for each in found.histogram
    )
    line = f'<em style="left:{100 * max_length / end:.2f}%"></em>' if max_length < end else ""
    label = f"Lengths of {found.measured:,} rows: median {found.p50:,}, longest {found.max:,} tokens"
    return (
        f'<div class="histogram"><div role="img" aria-label="{label}">{bars}{line}</div>'
        f"<p><span>{found.histogram[0]['from']:,}</span><b>tokens a row</b><span>{end:,}</span></p></div>"
    )
