"""Perplexity of a model on held-out rows of its training, and on as many rows it was trained on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy

from core.training.contract.failures import TrainingError
from core.training.contract.files import sha256_of
from core.training.contract.job import Job
from core.training.contract.row_reader import BadRow
from core.training.contract.stages import STAGES
from core.training.data.encoders import AnyEncoder, encoder_for
from core.training.data.model_rows import rows_for_model
from core.training.data.rows import read_rows
from core.training.data.tokens import Tokens

MAX_ROWS = 100
"""Rows of each part that are read."""


@dataclass(frozen=True)
class RowsToPredict:
    """Rows in tokens whose answers a model predicts."""

    held_out: Sequence[Tokens] = ()
    trained: Sequence[Tokens] = ()
    key: str = ""
    """Hash of the held-out rows."""

    def perplexity(self, model: Any) -> float | None:
        """Return the perplexity of the held-out answers; None without rows."""
        return _perplexity(model, self.held_out)

    def trained_perplexity(self, model: Any) -> float | None:
        """Return the perplexity of answers that were trained on."""
        return _perplexity(model, self.trained)


def rows_to_predict(job: Job, run: Path) -> RowsToPredict:
    """Return the rows of a run as its training reads them. None are left if it held out none, if
    its rows have no answers, or if they can no longer be read."""
    if STAGES[job.stage].generates or not (run / "data" / "eval.jsonl").is_file():
        return RowsToPredict()
    try:
        rows = read_rows(
            run, job.dataset, job.eval_dataset, job.eval_fraction, job.seed, stage=job.stage
        )
        tokenizer, rows = rows_for_model(job, rows)
        encoder = encoder_for(tokenizer, job.stage, rows.train[0], job.assistant_only_loss)
        key = f"perplexity {sha256_of(run / 'data' / 'eval.jsonl')} {job.stage} {job.max_length}"
        return RowsToPredict(
            _encoded(rows.eval, encoder, job.max_length),
            _encoded(rows.train, encoder, job.max_length),
            f"{key} {job.assistant_only_loss}",
        )
    except (TrainingError, OSError) as error:
        print(f"The perplexity is left out: {error}")
        return RowsToPredict()


def _encoded(dataset: Dataset | None, encoder: AnyEncoder, max_length: int) -> Sequence[Tokens]:
    """Return rows in tokens, cut as in the training; of a preference, the chosen text."""
    found: list[Tokens] = []
    for row in dataset or ():
        if len(found) == MAX_ROWS:
            break
        try:
            tokens = encoder.encode_all(row)[0]
        except BadRow:
            continue
        cut = Tokens(tokens.ids[:max_length], tokens.loss_mask[:max_length])
        if any(cut.loss_mask[1:]):
            found.append(cut)
    return tuple(found)


def _perplexity(model: Any, rows: Sequence[Tokens]) -> float | None:
    """Return e to the mean loss of all tokens that count."""
    loss, num_tokens = 0.0, 0
    for row in rows:
        ids_1T = torch.tensor([row.ids], device=model.device)
        counted_T = torch.tensor(row.loss_mask[1:], device=model.device)
        logits_TV = model(input_ids=ids_1T, use_cache=False).logits[0, :-1][counted_T]
        loss += float(cross_entropy(logits_TV.float(), ids_1T[0, 1:][counted_T], reduction="sum"))
        num_tokens += int(counted_T.sum())
    if not num_tokens:
        return None
    mean = loss / num_tokens
    return math.exp(mean) if mean < 700 else None
