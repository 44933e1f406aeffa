"""Prompts as the model reads them: rows as text, and which of them leave room for an answer."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset, Features, Value

from ..contract.failures import TrainingError
from ..contract.row_reader import BadRow
from .preferences import COLUMNS, Comparer, text_of
from .rows import Rows

Sets = dict[str, Dataset | None]
SHOWN_CHARACTERS = 60
TEXTS = Features({name: Value("string") for name in COLUMNS})


def in_text(rows: Rows, tokenizer: Any, max_length: int) -> Sets:
    """Preferences as text, tools included, without those whose prompt alone fills max_length.

    The trainers of ORPO and CPO do neither: they forget the tools, and divide by the length of an answer of none.
    Raises TrainingError for a row that they cannot divide into prompt and answers.
    """
    comparer = Comparer(tokenizer)

    def fits(row: Mapping[str, Any], where: str) -> bool:
        try:
            return comparer.prompt_length(row) < max_length
        except BadRow as error:
            end = text_of(row, tokenizer)["prompt"][-SHOWN_CHARACTERS:]
            raise TrainingError(
                f"{where}, whose prompt ends with {end!r}, cannot be compared: {error}. "
                "Leave it out, or end its prompt with a line break.",
                cause="bad_row",
            ) from None

    def convert(dataset: Dataset | None, lines: Sequence[int], field: str) -> Dataset | None:
        if dataset is None:
            return None
        numbered = zip(dataset, lines, strict=True)
        fitting = [
            text_of(row, tokenizer) for row, line in numbered if fits(row, f"{field} line {line}")
        ]
        return Dataset.from_dict(
            {name: [row[name] for row in fitting] for name in TEXTS}, features=TEXTS
        )

    return {
        "train_dataset": convert(rows.train, rows.train_lines, "dataset"),
        "eval_dataset": convert(rows.eval, rows.eval_lines, "eval_dataset"),
    }


def that_leave_room(rows: Rows, tokenizer: Any, max_tokens: int) -> Sets:
    """The prompts of at most so many tokens."""

    def fitting(dataset: Dataset | None) -> Dataset | None:
        if dataset is None:
            return None
        lengths = [len(prompt_ids(row, tokenizer)) for row in dataset]
        return dataset.select(
            [index for index, length in enumerate(lengths) if length <= max_tokens]
        )

    return {"train_dataset": fitting(rows.train), "eval_dataset": fitting(rows.eval)}


def prompt_ids(row: Mapping[str, Any], tokenizer: Any) -> list[int]:
    """The tokens of a row's prompt, as a model reads it before it answers."""
    prompt = row["prompt"]
    if isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"])
    found = tokenizer.apply_chat_template(
        prompt, tools=_tools(row), add_generation_prompt=True, tokenize=True, return_dict=True
    )
    return list(found["input_ids"])


def _tools(row: Mapping[str, Any]) -> Any:
    return json.loads(row["tools"]) if row.get("tools") else None
