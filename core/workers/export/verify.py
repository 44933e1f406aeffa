"""Compare the answers of an export with those of the model as it was trained."""

from collections.abc import Sequence
from dataclasses import replace

from core.after_training.export.records import AskedQuestion, Verification
from core.workers.export.questions import ExportAnswer, ExportQuestion

MAX_LOGPROB_DIFFERENCE = 0.05
"""Of the first token of an answer, between two programs that compute the same 16-bit numbers."""
SHOWN_CHARACTERS = 60


def compare(
    questions: Sequence[ExportQuestion],
    trained: Sequence[ExportAnswer],
    exported: Sequence[ExportAnswer],
    program: str,
    compared_with: str,
    *,
    is_16_bit: bool,
) -> Verification:
    """Return what differs. An export is trusted if all prompts are the same tokens and, in 16 bits,
    the first tokens are equally likely."""
    equal, same, ends, worst = 0, 0, 0, 0.0
    notes: list[str] = []
    for question, before, after in zip(questions, trained, exported, strict=True):
        shown = question.shown[:SHOWN_CHARACTERS]
        if before.prompt == after.prompt:
            equal += 1
        else:
            notes.append(f"the prompt of {shown!r} is other tokens")
        difference = _difference(before, after)
        if difference > MAX_LOGPROB_DIFFERENCE and is_16_bit:
            notes.append(f"the answer to {shown!r} begins with other probabilities")
        worst = max(worst, difference)
        same += _is_same(before, after)
        ends += before.ended == after.ended
    if not same:
        notes.append("no answer is the same")
    return Verification(
        trusted=bool(questions) and not notes,
        prompt_tokens_equal=equal,
        same_answers=same,
        questions=len(questions),
        worst_logprob_difference=worst,
        ends=ends,
        program=program,
        compared_with=compared_with,
        note="; ".join(notes[:2]),
    )


def asked(
    questions: Sequence[ExportQuestion],
    trained: Sequence[ExportAnswer],
    exported: Sequence[ExportAnswer],
) -> tuple[AskedQuestion, ...]:
    """Return the questions, where each is from, and whether its answer stayed the same."""
    found = []
    for question, before, after in zip(questions, trained, exported, strict=True):
        shown = question.shown[:SHOWN_CHARACTERS]
        found.append(AskedQuestion(shown, question.source, _is_same(before, after)))
    return tuple(found)


def _is_same(before: ExportAnswer, after: ExportAnswer) -> bool:
    return before.tokens == after.tokens and before.ended == after.ended


def _difference(before: ExportAnswer, after: ExportAnswer) -> float:
    """Return the difference in log-probability of the first token.

    An empty answer has none: llama.cpp reports every end token as certain.
    """
    if before.first_logprob is None or after.first_logprob is None or not before.tokens:
        return 0.0
    return abs(before.first_logprob - after.first_logprob)


def doubted(verified: Verification, notes: Sequence[str]) -> Verification:
    """Return a verification with further reasons not to trust an export, if there are any."""
    if not notes:
        return verified
    known = filter(None, (verified.note, notes[0]))
    return replace(verified, trusted=False, note="; ".join(known))
