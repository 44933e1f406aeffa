"""Compare the scores of an exported reward model with those of the model as it was trained."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from core.after_training.export.records import AskedQuestion, Verification
from core.training.contract.job import Job
from core.training.contract.row_columns import Row
from core.training.data.encoders import encoder_for
from core.training.data.model_rows import rows_for_model
from core.workers.export.choosing import HELD_OUT, MAX_PROMPT_TOKENS, TRAINED, rows_of_run
from core.workers.trained_model import TrainedModel

NUM_PAIRS = 8
"""Rows that are asked; both answers of each are scored."""
MAX_DIFFERENCE = 0.05
"""Of two scores, as a part of the one as trained; of scores below 1, as it is."""
SHOWN_CHARACTERS = 60


@dataclass(frozen=True)
class ScoredText:
    """Text of a row with its score."""

    text: str
    source: str
    tokens: tuple[int, ...]
    score: float

    def is_as(self, other: "ScoredText") -> bool:
        """Return True if another score of the same text is the same within the tolerance."""
        return abs(self.score - other.score) <= MAX_DIFFERENCE * max(1.0, abs(self.score))


def rows_to_score(job: Job, run_folder: Path) -> tuple[tuple[str, Row], ...]:
    """Return (source, row) of rows of a run, the held-out ones first.

    Raises TrainingError if the rows are not there any more.
    """
    tokenizer, rows = rows_for_model(job, rows_of_run(job, run_folder))
    found: list[tuple[str, Row]] = []
    encoder: Any = None
    held_out = ((HELD_OUT, row) for row in rows.eval or ())
    for source, row in chain(held_out, ((TRAINED, row) for row in rows.train)):
        encoder = encoder or encoder_for(tokenizer, job.stage, row, False)
        longest = max(len(each.ids) for each in encoder.encode_all(row))
        if longest <= MAX_PROMPT_TOKENS:
            found.append((source, row))
        if len(found) == NUM_PAIRS:
            break
    return tuple(found)


def scores_of(
    loaded: TrainedModel, stage: str, rows: Sequence[tuple[str, Row]]
) -> tuple[ScoredText, ...]:
    """Return the scores of both answers of each row, in the tokens that a training reads."""
    found = []
    for source, row in rows:
        encoder = encoder_for(loaded.tokenizer, stage, row, False)
        for tokens in encoder.encode_all(row, with_text=True):
            ids_BT = torch.tensor([list(tokens.ids)], device=loaded.model.device)
            with loaded.inference():
                output = loaded.model(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT))
            score = float(output.logits.float().reshape(-1)[0])
            found.append(ScoredText(tokens.text, source, tuple(tokens.ids), score))
    return tuple(found)


def compare_scores(
    trained: Sequence[ScoredText], exported: Sequence[ScoredText], compared_with: str
) -> Verification:
    """Return what differs. An export is trusted if all texts are the same tokens and all scores are
    the same within the tolerance."""
    pairs = list(zip(trained, exported, strict=True))
    num_equal = sum(before.tokens == after.tokens for before, after in pairs)
    num_same = sum(before.is_as(after) for before, after in pairs)
    notes = []
    for before, after in pairs:
        shown = before.text.strip()[-SHOWN_CHARACTERS:]
        if before.tokens != after.tokens:
            notes.append(f"the text that ends with {shown!r} is other tokens")
        elif not before.is_as(after):
            notes.append(f"the text that ends with {shown!r} has another score")
    worst = max((abs(before.score - after.score) for before, after in pairs), default=None)
    return Verification(
        trusted=bool(pairs) and not notes,
        prompt_tokens_equal=num_equal,
        same_answers=num_same,
        questions=len(pairs),
        worst_logprob_difference=None,
        program="transformers",
        compared_with=compared_with,
        note="; ".join(notes[:2]),
        worst_score_difference=worst,
    )


def scored(
    trained: Sequence[ScoredText], exported: Sequence[ScoredText]
) -> tuple[AskedQuestion, ...]:
    """Return the texts, where each is from, and whether its score stayed the same."""
    found = []
    for before, after in zip(trained, exported, strict=True):
        shown = before.text.strip()[-SHOWN_CHARACTERS:]
        found.append(AskedQuestion(shown, before.source, before.is_as(after)))
    return tuple(found)
