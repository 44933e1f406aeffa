"""Results of checks of exports in words, the same on the page and in the terminal."""

from collections.abc import Iterator

from core.after_training.export.records import Export, Manifest
from core.after_training.export_checks.both import BothBases
from core.runs.checks import SuiteResult
from core.runs.checks.sentences import change_sentence, count_sentence, p_value_words
from core.runs.checks.statistics import MAX_CHANCE

AS_TRAINED = "as trained"
BASE_WORDS = ("over the base as it trained", "over the 16-bit base")
"""Words for the exports over both bases."""


def checks_in_short(export: Export) -> str:
    """Return what an export passed: identity 89/100 (90 as trained)."""
    counts = []
    for each in export.checks:
        counts.append(f"{each.name} {each.after}/{each.total} ({each.before} {AS_TRAINED})")
    return ", ".join(counts)


def as_exported(manifest: Manifest) -> str:
    """Return words for the model in an export: as Q4_K_M, as merged over the 16-bit base."""
    said = f"as {manifest.quant or 'merged'}"
    if manifest.base == "original":
        return f"{said} over the 16-bit base"
    return said


def compared_words(manifest: Manifest) -> tuple[str, str]:
    """Return words for the two models that a check of an export compares."""
    return AS_TRAINED, as_exported(manifest)


def check_sentences(result: SuiteResult, manifest: Manifest) -> tuple[str, str]:
    """Return (N of M as trained, N of M as exported; what that has changed, and whether by more
    than chance)."""
    return f"{count_sentence(result, *compared_words(manifest))}.", change_sentence(result)


def both_sentences(both: BothBases) -> Iterator[str]:
    """Yield what the exports over both bases passed, which is recommended, and why."""
    for each in both.compared:
        yield f"{count_sentence(each, *BASE_WORDS)}. {change_sentence(each)}"
    untrusted = " and ".join(both.names[base] for base in both.untrusted)
    if not both.is_one_trusted:
        yield f"Neither is to be trusted, so none is recommended: {untrusted}."
        return
    p_value = both.p_value
    reason = f"no difference beyond chance, {p_value_words(p_value)}"
    if p_value < MAX_CHANCE:
        reason = f"a difference beyond chance, {p_value_words(p_value)}"
    if untrusted:
        reason = f"{untrusted} is not to be trusted"
    words = BASE_WORDS[both.recommended == "original"]
    yield f"Recommended: {both.names[both.recommended]}, {words} ({reason})."
