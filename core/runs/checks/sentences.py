"""Results of checks in words, computed from their numbers."""

from collections.abc import Mapping, Sequence

from core.runs.checks.results import CheckCount, PerplexityResult, SuiteResult
from core.runs.checks.statistics import MAX_CHANCE, wilson_interval
from core.wording import as_markdown

NOT_SAID = """\
The interval holds the share of such tests that the model would pass, 19 times in 20.
What the numbers do not say:

- How good other answers are: each check asks its own questions only, once, and takes the most
  likely answer.
- That nothing else was lost: only what these tests ask was looked at.
- That the model generalises: some questions may stand in the rows that it was trained on.
- That one model is better than another whose interval overlaps with this one.
"""
"""What must not be concluded from the numbers of suites, in Markdown."""
MEMORISED_RATIO = 1.5
"""Perplexity of held-out rows over that of trained rows from which the model has memorised."""


def count_sentence(result: SuiteResult, before: str = "before", after: str = "after") -> str:
    """Return the numbers of a suite: N of M before, N of M after, and how sure the last is.

    `before` and `after` are words for the two models.
    """
    return (
        f"{result.name}: {result.before} of {result.total} {before}, {result.after} of "
        f"{result.total} {after} ({_would_pass(result)})"
    )


def interval_sentence(result: SuiteResult) -> str:
    """Return how sure the number after the training is."""
    return f"After the training, {_would_pass(result)}."


def _would_pass(result: SuiteResult) -> str:
    low, high = wilson_interval(result.after, result.total)
    return f"of such tests, {low:.0%} to {high:.0%} would pass"


def change_sentence(result: SuiteResult) -> str:
    """Return what the training has changed, and whether that can be chance."""
    lost, gained = len(result.lost), len(result.gained)
    if not lost and not gained:
        return "Nothing was lost or gained."
    numbers = f"{gained} gained, {lost} lost"
    if lost == gained:
        return f"{numbers}."
    direction = "gained" if gained > lost else "lost"
    if result.p_value < MAX_CHANCE:
        return f"{numbers}: {direction} more than chance ({p_value_words(result.p_value)})."
    return f"{numbers}: this can be chance ({p_value_words(result.p_value)})."


def check_table(counts: Sequence[CheckCount]) -> str:
    """Return the numbers of suites as a table in Markdown."""
    lines = [
        "| check | tests | before | after | 95 % interval | change |",
        "|---|--:|--:|--:|--:|---|",
    ]
    for each in counts:
        low, high = wilson_interval(each.after, each.total)
        name = as_markdown(each.name)
        numbers = f"{each.total} | {each.before} of {each.total} | {each.after} of {each.total}"
        lines.append(f"| {name} | {numbers} | {low:.0%} to {high:.0%} | {_change(each)} |")
    return "\n".join(lines)


def _change(count: CheckCount) -> str:
    if count.before == count.after:
        return "none in sum"
    direction = "gained" if count.after > count.before else "lost"
    if count.p_value is None:
        return direction
    how = "more than chance" if count.p_value < MAX_CHANCE else "can be chance"
    return f"{direction}: {how} ({p_value_words(count.p_value)})"


def p_value_words(p_value: float) -> str:
    """Return a p-value, such as `p = 0.004`."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.2g}"


def perplexity_sentences(found: PerplexityResult) -> tuple[str, ...]:
    """Return what the perplexities say; nothing if none were measured."""
    if found.before is None or found.after is None:
        return ()
    rows = "1 held-out row" if found.num_rows == 1 else f"{found.num_rows} held-out rows"
    sentences = [f"Perplexity on {rows}: {found.before:.4g} before, {found.after:.4g} after."]
    if found.after > found.before:
        sentences.append(
            "The model predicts held-out answers worse than before: it has not learnt what they "
            "share. Train for fewer epochs, or with a lower learning_rate."
        )
    elif found.trained_rows and found.after > MEMORISED_RATIO * found.trained_rows:
        sentences.append(
            f"On rows that it was trained on it is {found.trained_rows:.4g}: the model has "
            "memorised them. More varied rows or fewer epochs would help."
        )
    return tuple(sentences)


def missed_thresholds(
    results: Mapping[str, SuiteResult], at_least: Mapping[str, int]
) -> tuple[str, ...]:
    """Return a sentence for each suite that passed fewer tests than asked for."""
    return tuple(
        f"{name}: {results[name].after} of {results[name].total} passed, {wanted} were asked for."
        for name, wanted in at_least.items()
        if results[name].after < wanted
    )
