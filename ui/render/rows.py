"""Rows as HTML: one row with the tokens that count for the loss, and the lengths of all rows."""

from collections.abc import Sequence
from html import escape

from core.dataset.preview import ShownRow, ShownText
from core.dataset.token_lengths import Lengths
from core.job import Problem
from ui.render import notice

MAX_CHARACTERS = 20_000
"""Shown of one row; a page of a book has some 3,000."""
LEGEND = {"counts": "trained on", "masked": "context only"}
CUT_LEGEND = {"cut": "cut off"}
LABELS = {None: "", True: " · desired answer", False: " · undesired answer"}


def row(shown: ShownRow, num_rows: int) -> str:
    """Return a row as the model's template writes it; of a preference both answers."""
    title = f"Row {shown.index + 1:,} of {num_rows:,} · line {shown.line:,}"
    if shown.error:
        return f'<div class="shown-row"><p>{title}</p>{notice(shown.error, "bad")}</div>'
    texts = _text(title + LABELS[shown.label], shown)
    if shown.rejected:
        texts += _text("rejected", shown.rejected)
    if shown.lost:
        said = f"The row holds {', '.join(shown.lost)}, which the chat template does not print."
        texts += notice(said, "warned")
    return f'<div class="shown-row">{texts}</div>'


def _text(title: str, shown: ShownText) -> str:
    """Return one text, with what counts, what is only read and what max_length cuts off."""
    pieces = [(text, "counts" if counts else "masked") for text, counts in shown.pieces]
    pieces.append((shown.cut, "cut"))
    room = MAX_CHARACTERS
    spans = ""
    for text, kind in pieces:
        if visible := text[:room]:
            spans += f'<span class="{kind}">{escape(visible)}</span>'
        room -= len(text[:room])
    kinds = LEGEND | (CUT_LEGEND if shown.cut else {})
    legend = "".join(f'<i class="{kind}">{word}</i>' for kind, word in kinds.items())
    counted = f"{shown.num_tokens:,} tokens, {shown.num_counted:,} of them trained on"
    return f"<p>{title} · {counted} <b>{legend}</b></p><pre>{spans}</pre>"


def lengths(found: Lengths, refusals: Sequence[Problem], notes: Sequence[str]) -> str:
    """Return how long the rows are, what max_length does to them, and what stops a training."""
    if not found.measured:
        return notice("Measuring the rows ...", "plain")
    parts = [
        f"Tokens per row: median {found.p50:,}, 95th percentile {found.p95:,}, max {found.max:,}"
    ]
    harms = (
        (found.truncated_rows, "cut"),
        (found.lost_answer_rows, "lose the whole answer"),
        (found.unanswered_rows, "without an answer to learn from"),
        (found.unreadable_rows, "cannot be measured"),
    )
    harmed = [f"{number:,} {harm}" for number, harm in harms if number]
    parts += harmed or [f"none cut at {found.max_length:,}"]
    if not found.is_complete:
        parts.append(f"measured {found.measured:,} of {found.rows:,}")
    is_harmful = found.lost_answer_rows or found.unanswered_rows or found.unreadable_rows
    said = notice(" · ".join(parts), "warned" if is_harmful else "plain")
    for each in refusals:
        said += notice(f"{each.problem}; {each.fix}", "bad")
    for each_lost in found.lost_in_template:
        said += notice(f"{each_lost}.", "warned")
    for note in notes:
        said += notice(note, "plain")
    return said


def histogram(found: Lengths) -> str:
    """Return how many rows have which length, with a line at max_length if it is in range."""
    if not found.histogram:
        return ""
    most = max(each["rows"] for each in found.histogram)
    end = found.histogram[-1]["to"]
    bars = ""
    for each in found.histogram:
        start, stop = each["from"], each["to"] - 1
        kind = ' class="cut"' if start >= found.max_length else ""
        bars += (
            f'<span{kind} style="height:{100 * each["rows"] / most:.1f}%" '
            f'title="{each["rows"]:,} rows of {start:,} to {stop:,} tokens"></span>'
        )
    if found.max_length < end:
        bars += f'<em style="left:{100 * found.max_length / end:.2f}%"></em>'
    label = (
        f"Lengths of {found.measured:,} rows: median {found.p50:,}, longest {found.max:,} tokens"
    )
    scale = f"<span>{found.histogram[0]['from']:,}</span><b>tokens per row</b><span>{end:,}</span>"
    return (
        f'<div class="histogram"><div role="img" aria-label="{label}">{bars}</div>'
        f"<p>{scale}</p></div>"
    )
