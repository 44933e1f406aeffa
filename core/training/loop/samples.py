"""Samples: what the model answers to a few questions of the data. Leaves no trace in the training."""

import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from transformers import GenerationConfig

from ..data.prompts import prompt_ids
from ..data.rows import Rows
from ..record.run_files import Record

MAX_NEW_TOKENS = 64


@dataclass(frozen=True)
class Question:
    """A question as a person reads it, and as the model does."""

    text: str
    token_ids: tuple[int, ...]


def choose_questions(
    rows: Rows, tokenizer: Any, num_samples: int, max_length: int
) -> tuple[Question, ...]:
    """The first questions of the evaluation rows, else of the training rows, that leave room for an answer."""
    if not rows.has_marked_answers:
        return ()
    questions = (
        _question(row, tokenizer) for row in (rows.train if rows.eval is None else rows.eval)
    )
    fitting = (question for question in questions if 0 < len(question.token_ids) < max_length)
    return tuple(islice(_once_each(fitting), num_samples))


def answer_all(
    questions: Sequence[Question], trainer: Any, tokenizer: Any, record: Record, step: int
) -> None:
    """Adds the answers of a trainer's model to samples.jsonl. One that cannot generate is no reason to lose a training.

    As it trains, under autocast: PEFT's `generate` calls the base past the forward pass that accelerate puts under it.
    """
    model = trainer.model
    if not hasattr(model, "generation_config"):  # a reward model writes no answers
        return
    try:
        for question in questions:
            if record.is_stop_requested():
                return
            with trainer.accelerator.autocast():
                answer = _answer(model, tokenizer, question)
            record.append_sample(step, question.text, answer)
    except Exception:
        traceback.print_exc()
        print("The samples are left out: the model could not answer.")


def _answer(model: Any, tokenizer: Any, question: Question) -> str:
    """The model's greedy answer, without a trace in random numbers, dropout or gradients."""
    ids = torch.tensor([question.token_ids], device=model.device)
    settings = GenerationConfig(
        max_new_tokens=MAX_NEW_TOKENS,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=model.generation_config.eos_token_id or tokenizer.eos_token_id,
    )
    was_training = model.training
    model.eval()
    with torch.random.fork_rng(), torch.no_grad():
        output = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings
        )
    model.train(was_training)
    return str(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)).strip()


def _once_each(questions: Iterator[Question]) -> Iterator[Question]:
    """Rows may hold several answers to one question."""
    seen = set()
    for question in questions:
        if question not in seen:
            seen.add(question)
            yield question


def _question(row: dict[str, Any], tokenizer: Any) -> Question:
    prompt = row["prompt"] if "prompt" in row else _until_first_question(row["messages"])
    text = prompt if isinstance(prompt, str) else str(prompt[-1].get("content") or "")
    return Question(text, tuple(prompt_ids(row | {"prompt": prompt}, tokenizer)))


def _until_first_question(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The conversation up to its first user turn."""
    roles = [message["role"] for message in messages]
    return list(messages[: roles.index("user") + 1 if "user" in roles else 1])
