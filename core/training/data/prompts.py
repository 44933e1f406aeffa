"""Prompts in tokens and preferences as text, without the rows that leave no room for an answer."""

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset, Features, Value

from ..contract.failures import TrainingError
from ..contract.row_reader import BadRow
from .chat import ChatTemplate, conversations_of
from .preferences import PREFERENCE_COLUMNS, PreferenceEncoder
from .refusals import naming_faults
from .rows import Rows, naming_line

TrainerDatasets = dict[str, Dataset | None]
"""Arguments `train_dataset` and `eval_dataset` of a trainer."""
SHOWN_CHARACTERS = 60
TEXT_COLUMNS = Features({name: Value("string") for name in PREFERENCE_COLUMNS})


def preferences_as_text(rows: Rows, tokenizer: Any, max_length: int, stage: str) -> TrainerDatasets:
    """Return preferences as text, tools included, without those whose prompt alone fills
    max_length.

    The trainers of ORPO and CPO do neither: they ignore tools, and divide by the length of an empty
    answer. Raises TrainingError for a row that they cannot split into prompt and answers.
    """
    encoder = PreferenceEncoder(tokenizer, stage)

    def convert(dataset: Dataset | None, lines: Sequence[int], field: str) -> Dataset | None:
        if dataset is None:
            return None
        texts = []
        for row, line in zip(dataset, lines, strict=True):
            with naming_line(field, line):
                text = encoder.text(row)
            try:
                if encoder.prompt_length(row) < max_length:
                    texts.append(text)
            except BadRow as error:
                end_of_prompt = text["prompt"][-SHOWN_CHARACTERS:]
                raise TrainingError(
                    f"{field} line {line}, whose prompt ends with {end_of_prompt!r}, cannot be "
                    f"compared: {error}. Leave it out, or end its prompt with a line break.",
                    cause="bad_row",
                ) from None
        columns = {name: [text[name] for text in texts] for name in TEXT_COLUMNS}
        return Dataset.from_dict(columns, features=TEXT_COLUMNS)

    return {
        "train_dataset": convert(rows.train, rows.train_lines, "dataset"),
        "eval_dataset": convert(rows.eval, rows.eval_lines, "eval_dataset"),
    }


def prompts_up_to(rows: Rows, tokenizer: Any, max_tokens: int) -> TrainerDatasets:
    """Return the prompts of at most `max_tokens` tokens."""

    def select(dataset: Dataset | None, lines: Sequence[int], field: str) -> Dataset | None:
        if dataset is None:
            return None
        kept = []
        for index, row in enumerate(dataset):
            with naming_line(field, lines[index]):
                if len(prompt_ids(row, tokenizer)) <= max_tokens:
                    kept.append(index)
        return dataset.select(kept)

    return {
        "train_dataset": select(rows.train, rows.train_lines, "dataset"),
        "eval_dataset": select(rows.eval, rows.eval_lines, "eval_dataset"),
    }


def prompt_ids(row: Mapping[str, Any], tokenizer: Any) -> list[int]:
    """Return the tokens of a row's prompt, as the model reads it before it answers.

    Raises BadRow if the chat template refuses it.
    """
    prompt = row["prompt"]
    if isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"])
    template = ChatTemplate(tokenizer)
    (conversation,) = conversations_of({"prompt": prompt, "tools": row.get("tools")})
    with naming_faults(conversation, template):
        text = template.render(prompt, conversation.tools, opens_answer=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
