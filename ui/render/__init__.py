"""Core objects as HTML and plotly figures, one module for each part of the page."""

from html import escape


def notice(text: str, kind: str = "good") -> str:
    """One line under a control: good, bad or plain."""
    return f'<p class="notice {kind}">{escape(text)}</p>' if text else ""


def top_line(device: str) -> str:
    """The name, and what this machine has."""
    return f'<div class="top"><h1>Tailor</h1><span class="chip">{escape(device)}</span></div>'


def progress(text: str, share: float) -> str:
    """What is being done, and how much of it is; `share` from 0 to 1."""
    bar = f'<div class="progress" role="progressbar" aria-valuenow="{100 * share:.0f}"><span style="width:{share:.1%}">'
    return f'<div class="waiting"><p>{escape(text)} ... {share:.0%}</p>{bar}</span></div></div>'
