"""Rows in tokens for the trainers that take them, with the tokens that count for the loss."""

import uuid
from collections.abc import Sequence

from datasets import Features, List, Value

from ..contract.row_columns import Row
from .prompts import TrainerDatasets
from .rows import Rows, naming_line
from .tokens import Encoder, Tokens

IGNORED = -100
"""Label of a token that does not count, as in PyTorch's cross-entropy."""
TOKEN_COLUMNS = Features({"input_ids": List(Value("int64")), "labels": List(Value("int64"))})


def tokenized(rows: Rows, encoder: Encoder) -> TrainerDatasets:
    """Return rows as the columns `input_ids` and `labels`, uncut. Raises TrainingError with the
    line of a row that has none."""
    found: TrainerDatasets = {"train_dataset": None, "eval_dataset": None}
    for dataset, lines, field in rows.files:
        part = "train" if field == "dataset" else "eval"

        def encode(
            row: Row, index: int, lines: Sequence[int] = lines, field: str = field
        ) -> dict[str, list[int]]:
            with naming_line(field, lines[index]):
                return _as_columns(encoder.encode(row))

        found[f"{part}_dataset"] = dataset.map(
            encode,
            with_indices=True,
            remove_columns=dataset.column_names,
            features=TOKEN_COLUMNS,
            new_fingerprint=uuid.uuid4().hex,  # nothing is cached, so nothing needs hashing
            desc=f"Tokenizing {part} dataset",
        )
    return found


def _as_columns(tokens: Tokens) -> dict[str, list[int]]:
    pairs = zip(tokens.ids, tokens.loss_mask, strict=True)
    labels = [token if counts else IGNORED for token, counts in pairs]
    return {"input_ids": list(tokens.ids), "labels": labels}
