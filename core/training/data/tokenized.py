"""Rows in tokens for the trainers that take them, with the tokens that count for the loss."""

import uuid
from collections.abc import Callable, Mapping, Sequence

from datasets import Dataset, Features, List, Value

from ..contract.row_columns import Row
from .prompts import TrainerDatasets
from .rows import Rows, naming_line
from .tokens import Encoder, Tokens

IGNORED = -100
"""Label of a token that does not count, as in PyTorch's cross-entropy."""
Columns = Mapping[str, Sequence[int] | bool]
TOKEN_LIST = List(Value("int64"))


def tokenized(rows: Rows, encoder: Encoder) -> TrainerDatasets:
    """Return rows as the columns `input_ids` and `labels`, uncut.

    This and the functions below raise TrainingError with the line of a row that has no tokens.
    """

    def columns(row: Row) -> Columns:
        tokens = encoder.encode(row)
        pairs = zip(tokens.ids, tokens.loss_mask, strict=True)
        labels = [token if counts else IGNORED for token, counts in pairs]
        return {"input_ids": tokens.ids, "labels": labels}

    return _converted(rows, columns, ("input_ids", "labels"))


def tokenized_pairs(rows: Rows, encoder: Encoder) -> TrainerDatasets:
    """Return preferences as the tokens of a prompt and of its two answers."""

    def columns(row: Row) -> Columns:
        chosen, rejected = encoder.encode_all(row)
        begin = _prompt_length(chosen)
        return {
            "prompt_ids": chosen.ids[:begin],
            "chosen_ids": chosen.ids[begin:],
            "rejected_ids": rejected.ids[begin:],
        }

    return _converted(rows, columns, ("prompt_ids", "chosen_ids", "rejected_ids"))


def tokenized_texts(rows: Rows, encoder: Encoder) -> TrainerDatasets:
    """Return preferences as the tokens of their two whole texts."""

    def columns(row: Row) -> Columns:
        chosen, rejected = encoder.encode_all(row)
        return {"chosen_ids": chosen.ids, "rejected_ids": rejected.ids}

    return _converted(rows, columns, ("chosen_ids", "rejected_ids"))


def tokenized_verdicts(rows: Rows, encoder: Encoder) -> TrainerDatasets:
    """Return answers that are wanted or not as the tokens of a prompt and of its answer."""

    def columns(row: Row) -> Columns:
        (tokens,) = encoder.encode_all(row)
        begin = _prompt_length(tokens)
        ids = {"prompt_ids": tokens.ids[:begin], "completion_ids": tokens.ids[begin:]}
        return {**ids, "label": bool(row["label"])}

    return _converted(rows, columns, ("prompt_ids", "completion_ids"), label=Value("bool"))


def _converted(
    rows: Rows, columns: Callable[[Row], Columns], names: Sequence[str], **others: Value
) -> TrainerDatasets:
    """Return rows as other columns: lists of tokens under these names, and others."""
    features = Features({**dict.fromkeys(names, TOKEN_LIST), **others})
    found: TrainerDatasets = {"train_dataset": None, "eval_dataset": None}
    for dataset, lines, field in rows.files:
        part = "train" if field == "dataset" else "eval"
        found[f"{part}_dataset"] = _mapped(dataset, lines, field, columns, features)
    return found


def _mapped(
    dataset: Dataset,
    lines: Sequence[int],
    field: str,
    columns: Callable[[Row], Columns],
    features: Features,
) -> Dataset:
    def encode(row: Row, index: int) -> Columns:
        with naming_line(field, lines[index]):
            return columns(row)

    return dataset.map(
        encode,
        with_indices=True,
        remove_columns=dataset.column_names,
        features=features,
        new_fingerprint=uuid.uuid4().hex,  # nothing is cached, so nothing needs hashing
        desc=f"Tokenizing the rows of {field}",
    )


def _prompt_length(tokens: Tokens) -> int:
    """Return how many tokens stand before those that are compared."""
    begin = tokens.first_in_loss
    return len(tokens.ids) if begin is None else begin
