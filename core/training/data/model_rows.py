"""Rows as a model reads them, with its tokenizer."""

from dataclasses import replace
from typing import Any

from datasets import Dataset, Features, Json, List

from ..contract.job import Job
from .chat import ANSWER_COLUMNS
from .encoders import encoder_for
from .plain_text import PlainText, decide
from .rows import Rows, naming_line
from .tokenizer import load_tokenizer


def rows_for_model(job: Job, rows: Rows) -> tuple[Any, Rows]:
    """Return (tokenizer of a job's model, the rows as the model reads them).

    Raises TrainingError if the model cannot read the first row: that is known before the weights
    are loaded, which may take minutes.
    """
    tokenizer = load_tokenizer(job.model, job.revision, is_conversational=rows.is_conversational)
    plain_text = decide(
        rows.first,
        tokenizer,
        uses_template=job.use_chat_template,
        is_cut=rows.has_cut_prompts,
    )
    if plain_text.note:
        print(plain_text.note)
    rows = _converted(rows, plain_text, tokenizer)
    first = rows.train[0]
    encoder = encoder_for(tokenizer, job.stage, first, job.assistant_only_loss)
    with naming_line("dataset", rows.train_lines[0]):
        encoder.encode_all(first)
    return tokenizer, rows


def _converted(rows: Rows, plain_text: PlainText, tokenizer: Any) -> Rows:
    if not plain_text.becomes_chat:
        return rows

    columns = dict(rows.train.features)
    for name in (*ANSWER_COLUMNS, "prompt"):
        if name in columns:
            columns[name] = List(Json())

    def convert(dataset: Dataset | None) -> Dataset | None:
        if dataset is None:
            return None
        chats = [plain_text.row(row, tokenizer) for row in dataset]
        return Dataset.from_list(chats, features=Features(columns))

    return replace(rows, train=convert(rows.train), eval=convert(rows.eval))
