"""Rows in tokens for the trainers that take them, with the tokens that count for the loss."""

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset, Features, List, Value

from .prompts import TrainerDatasets
from .rows import Rows, naming_line
from .tokens import Encoder

IGNORED = -100
"""Label of a token that does not count, as in PyTorch's cross-entropy."""
TOKEN_COLUMNS = Features({"input_ids": List(Value("int64")), "labels": List(Value("int64"))})


def tokenized(rows: Rows, encoder: Encoder) -> TrainerDatasets:
    """Return rows as the columns `input_ids` and `labels`, uncut. Raises TrainingError with the
    line of a row that has none."""

    def convert(dataset: Dataset | None, lines: Sequence[int], field: str) -> Dataset | None:
        if dataset is None:
            return None

        def encode(row: Mapping[str, Any], index: int) -> dict[str, list[int]]:
            with naming_line(field, lines[index]):
                tokens = encoder.encode(row)
            pairs = zip(tokens.ids, tokens.loss_mask, strict=True)
            labels = [token if counts else IGNORED for token, counts in pairs]
            return {"input_ids": list(tokens.ids), "labels": labels}

        return dataset.map(
            encode,
            with_indices=True,
            remove_columns=dataset.column_names,
            features=TOKEN_COLUMNS,
            new_fingerprint=uuid.uuid4().hex,  # nothing is cached, so nothing needs hashing
            desc=f"Tokenizing {field}",
        )

    return {
        "train_dataset": convert(rows.train, rows.train_lines, "dataset"),
        "eval_dataset": convert(rows.eval, rows.eval_lines, "eval_dataset"),
    }
