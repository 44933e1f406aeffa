"""Sizes and proofs of exports as words, the same on the page and in the terminal."""

from core.after_training.export.plan import ExportPlan
from core.after_training.export.records import Export, Manifest, Verification
from core.wording import file_size, rough_duration

NUM_SHOWN = 3
"""Questions that are named."""


def export_size(export: Export) -> str:
    """Return the size of an export and whether it was verified: 340 MiB, verified."""
    if export.damage:
        return f"{file_size(export.num_bytes)}, damaged: {export.damage}; export it again"
    verified = export.verified
    trust = "not verified"
    if verified:
        trust = "verified" if verified.trusted else "not to be trusted"
    return f"{file_size(export.num_bytes)}, {trust}"


def export_facts(plan: ExportPlan) -> str:
    """Return the size, the room that making it needs, and the rough time of an export."""
    facts = [file_size(plan.num_bytes)]
    if plan.temporary_bytes:
        facts.append(f"{file_size(plan.temporary_bytes)} more while it is made")
    facts.append(f"about {rough_duration(plan.seconds)} without the verification")
    return " · ".join(facts)


def verified_sentence(verified: Verification | None) -> str:
    """Return how an export was verified, and whether it is to be trusted."""
    if verified is None:
        return "Not verified."
    number = verified.questions
    if verified.worst_score_difference is not None:
        return _scores_sentence(verified)
    said = (
        f"{verified.same_answers} of {number} answers as trained, "
        f"{verified.prompt_tokens_equal} of {number} prompts the same tokens, "
        f"{verified.ends} of {number} end alike"
    )
    if verified.worst_logprob_difference is not None:
        said += f", first tokens within {verified.worst_logprob_difference:.2g} in log-probability"
    said += f" ({verified.program} against the {verified.compared_with})"
    if verified.trusted:
        return f"Verified: {said}."
    return f"Not to be trusted: {verified.note or 'nothing was compared'}. {said}."


def _scores_sentence(verified: Verification) -> str:
    number = verified.questions
    said = (
        f"{verified.same_answers} of {number} scores as trained, "
        f"{verified.prompt_tokens_equal} of {number} texts the same tokens, "
        f"scores within {verified.worst_score_difference:.2g} "
        f"({verified.program} against the {verified.compared_with})"
    )
    if verified.trusted:
        return f"Verified: {said}."
    return f"Not to be trusted: {verified.note or 'nothing was compared'}. {said}."


def asked_sentence(manifest: Manifest) -> str:
    """Return where the questions of a verification are from, and to which another answer came; ""
    if nothing was asked."""
    if not manifest.asked:
        return ""
    parts = [f"{number} of {source}" for source, number in manifest.sources.items()]
    is_scored = manifest.verified and manifest.verified.worst_score_difference is not None
    words = ("Texts", "score of") if is_scored else ("Questions", "answer to")
    said = f"{words[0]}: {', '.join(parts)}."
    others = [f"“{each.question}”" for each in manifest.asked if not each.is_same]
    if others:
        said += f" Another {words[1]} {', '.join(others[:NUM_SHOWN])}"
        said += f" and {len(others) - NUM_SHOWN} more." if len(others) > NUM_SHOWN else "."
    return said
