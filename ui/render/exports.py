"""Exports of a run as HTML: what they need, how far they are, what is there. Escapes all texts."""

from collections.abc import Sequence
from html import escape
from urllib.parse import quote

from core.after_training.export import Export, ExportStatus
from core.after_training.export.plan import ExportPlan
from core.after_training.export.sentences import (
    asked_sentence,
    export_facts,
    export_size,
    verified_sentence,
)
from core.after_training.export.serve import serve_lines
from core.after_training.export_checks import BothBases
from core.after_training.export_checks.sentences import (
    both_sentences,
    check_sentences,
    compared_words,
)
from core.job import TailorError
from core.wording import duration
from ui.render import notice, progress, sentences
from ui.render.checks import changed

DOWNLOADED = (".gguf", ".zip")
"""Files that a link offers; a folder of weights is copied instead."""


def tile(title: str, text: str, plan: ExportPlan | TailorError) -> str:
    """Return what a form of export is, with its size and time, or what is in its way.

    No title where one stands above it already.
    """
    if isinstance(plan, TailorError):
        said = "".join(notice(sentences(each), "warned") for each in plan.problems)
    else:
        said = f'<p class="facts">{escape(export_facts(plan))}</p>'
        said += "".join(notice(note, "plain") for note in plan.notes)
    text = f"{text[:1].upper()}{text[1:]}."
    head = f"<h4>{escape(title)}</h4>" if title else ""
    return f'<div class="export-tile">{head}<p>{escape(text)}</p>{said}</div>'


def status(name: str, found: ExportStatus, log: str) -> str:
    """Return how far an export is, or why it has ended without a result."""
    if found.state in ("starting", "running"):
        text = f"{name}: {found.phase or 'starting'}"
        if found.seconds_left is not None:
            text += f", about {duration(found.seconds_left)} left"
        return progress(text, found.share)
    if found.state == "failed":
        fix = f"{found.fix[:1].upper()}{found.fix[1:]}".replace("its log", log)
        return notice(f"{name}: {found.error} {fix}.".replace("..", "."), "bad")
    if found.state == "stopped":
        said = f"{name} was stopped. Press its button to continue with the files that are finished."
        return notice(said, "plain")
    return ""


def exports(run_id: str, found: Sequence[Export]) -> str:
    """Return the finished exports with their badges, places and lines to copy."""
    items = "".join(_export(run_id, each) for each in found)
    return f'<div class="exports">{items}</div>' if items else ""


def both(found: Sequence[BothBases]) -> str:
    """Return what exports over both bases passed, and which is recommended."""
    blocks = ""
    for each in found:
        title = f"Both bases: {' '.join(filter(None, (each.form, each.quant)))}"
        said = "".join(f"<p>{escape(sentence)}</p>" for sentence in both_sentences(each))
        blocks += f'<section aria-label="{escape(title)}"><h4>{escape(title)}</h4>{said}</section>'
    return f'<div class="exports">{blocks}</div>' if blocks else ""


def _checks(export: Export) -> str:
    """Return what an export passed beside the model as trained, and the tests that changed."""
    words = compared_words(export.manifest)
    blocks = ""
    for each in export.checks:
        numbers, change = check_sentences(each, export.manifest)
        counts, sign, rest = numbers.partition(" (")
        blocks += f"<p><strong>{escape(counts)}</strong>{escape(sign + rest)} {escape(change)}</p>"
        blocks += changed("Lost", each.lost, words) + changed("Gained", each.gained, words)
    return f'<div class="checks">{blocks}</div>' if blocks else ""


def _export(run_id: str, export: Export) -> str:
    verified = export.verified
    kind, badge = "plain", "not verified"
    if verified:
        kind, badge = ("good", "verified") if verified.trusted else ("bad", "not to be trusted")
    if export.damage:
        kind, badge = "bad", "damaged"
    links = ""
    for each in export.manifest.files:
        if each.name.endswith(DOWNLOADED) and (export.folder / each.name).is_file():
            address = f"export/{run_id}/{quote(export.name)}/{quote(each.name)}"
            links += f' <a href="{address}" download>Download {escape(each.name)}</a>'
    notes = "".join(notice(note, "plain") for note in export.manifest.notes)
    place = f"<p>{escape(export_size(export))} · <code>{escape(str(export.folder))}</code></p>"
    if export.manifest.url:
        place += f"<p><code>{escape(export.manifest.url)}</code></p>"
    lines = "".join(
        f"<dt>{escape(program)}</dt><dd><pre>{escape(text)}</pre></dd>"
        for program, text in serve_lines(export)
    )
    asked = asked_sentence(export.manifest)
    proof = notice(f"{verified_sentence(verified)} {asked}".strip(), "plain")
    return (
        f'<section aria-label="Export {escape(export.name)}">'
        f'<h4>{escape(export.name)} <span class="badge {kind}">{badge}</span></h4>'
        f"{place}{proof}{notes}{_checks(export)}"
        f"<p>{links}</p>"
        f"<details><summary>How to use it</summary><dl>{lines}</dl></details></section>"
    )
