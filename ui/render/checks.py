"""Results of checks as HTML: numbers, categories, what was lost and gained. Escapes all texts."""

from collections.abc import Sequence
from html import escape

from core.runs import Run
from core.runs.checks import Outcome, SuiteResult, sentences
from core.runs.results import checking
from ui.render import notice, table

MAX_SHOWN = 50
"""Lost or gained tests of a suite that are shown; the run's folder has all."""


def results(run: Run) -> str:
    """Return the kept results of a run, and folded those of its checkpoints."""
    found = checking.results_of(run)
    blocks = _of_other_step(run.result_step, found) + _results(run, None)
    for step in checking.checked_steps(run):
        counts = ", ".join(
            f"{each.name} {each.after} of {each.total}" for each in checking.results_of(run, step)
        )
        summary = f"The checkpoint of step {step:,}: {counts}"
        blocks += f"<details><summary>{escape(summary)}</summary>{_results(run, step)}</details>"
    return f'<div class="checks">{blocks}</div>' if blocks else ""


def _results(run: Run, checkpoint: int | None) -> str:
    """Return the results of a checkpoint; None is the result of the run."""
    blocks = "".join(map(_suite, checking.results_of(run, checkpoint)))
    perplexity = checking.perplexity_of(run, checkpoint)
    if perplexity:
        for sentence in sentences.perplexity_sentences(perplexity):
            blocks += f"<p>{escape(sentence)}</p>"
    return blocks


def _of_other_step(step: int | None, found: Sequence[SuiteResult]) -> str:
    """Return a warning if the result has changed since it was checked."""
    others = [each.name for each in found if step is not None and each.step != step]
    if not others:
        return ""
    said = f"The result is that of step {step:,} now. It has not answered: {', '.join(others)}."
    return notice(f"{said} Check again.", "warned")


def _suite(result: SuiteResult) -> str:
    """Return one suite: its numbers as bars, its categories, and the tests that changed."""
    bars = ""
    for name, number in (("before", result.before), ("after", result.after)):
        share = number / max(result.total, 1)
        bars += (
            f'<p class="facts">{number} of {result.total} {name}</p>'
            f'<div class="progress" role="img" aria-label="{number} of {result.total} {name}">'
            f'<span style="width:{share:.1%}"></span></div>'
        )
    rows = [
        (name, count.before, count.after, count.total)
        for name, count in result.categories.items()
        if count.before != count.after
    ]
    categories = table(rows, ("before", "after", "of")) if rows else ""
    return (
        f"<section><h4>{escape(result.name)}</h4>{bars}"
        f"<p>{escape(sentences.interval_sentence(result))}</p>"
        f"<p>{escape(sentences.change_sentence(result))}</p>"
        f"{_fold('Categories that changed', len(rows), categories)}"
        f"{changed('Lost', result.lost)}{changed('Gained', result.gained)}</section>"
    )


def changed(
    title: str, outcomes: Sequence[Outcome], words: tuple[str, str] = ("before", "after")
) -> str:
    """Return the tests that were lost or gained, folded, with words for the two models."""
    rows = [(each.prompt, each.before, each.after) for each in outcomes[:MAX_SHOWN]]
    return _fold(title, len(outcomes), table(rows, words))


def _fold(title: str, number: int, content: str) -> str:
    if not number:
        return ""
    return f"<details><summary>{escape(title)}: {number}</summary>{content}</details>"
