"""Sample answers: what the model answers to a few prompts of the data. Changes nothing in the
training."""

import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig

from ..data.prompts import prompt_ids
from ..data.rows import Rows
from ..ranks import agreement
from ..record import RunFiles

MAX_NEW_TOKENS = 64


@dataclass(frozen=True)
class Question:
    """Prompt, as text to show and as tokens for the model."""

    text: str
    token_ids: tuple[int, ...]


def choose_questions(
    rows: Rows, tokenizer: Any, num_samples: int, max_length: int
) -> tuple[Question, ...]:
    """Return the first distinct prompts of the evaluation rows, else of the training rows, that
    leave room to answer."""
    if not rows.has_marked_answers:
        return ()
    # A dict keeps the order, and drops repeated prompts of rows that differ in their answers.
    questions: dict[Question, None] = {}
    for row in rows.train if rows.eval is None else rows.eval:
        if len(questions) >= num_samples:
            break
        question = _question(row, tokenizer)
        if 0 < len(question.token_ids) < max_length:
            questions[question] = None
    return tuple(questions)


def answer_all(
    questions: Iterable[Question], trainer: Any, tokenizer: Any, run_files: RunFiles, step: int
) -> None:
    """Add the answers of a trainer's model to samples.jsonl. A model that cannot generate does not
    end the training."""
    model = trainer.model
    if not hasattr(model, "generation_config"):  # a reward model writes no answers
        return
    try:
        for question in questions:
            if agreement.any_rank(run_files.stop.is_set):
                return
            # PEFT's `generate` calls the base model without the autocast that accelerate puts
            # around its forward.
            with trainer.accelerator.autocast():
                answer = _answer(model, tokenizer, question)
            run_files.append_sample(step, question.text, answer)
    except Exception:
        traceback.print_exc()
        print("The samples are left out: the model could not answer.")


def _answer(model: Any, tokenizer: Any, question: Question) -> str:
    """Return the model's greedy answer; random numbers, training mode and gradients stay as they
    are."""
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
    new_ids = output[0, ids.shape[1] :]
    return str(tokenizer.decode(new_ids, skip_special_tokens=True)).strip()


def _question(row: Mapping[str, Any], tokenizer: Any) -> Question:
    if "prompt" in row:
        prompt = row["prompt"]
    else:
        prompt = _up_to_first_question(row["messages"])
    text = prompt if isinstance(prompt, str) else str(prompt[-1].get("content") or "")
    return Question(text, tuple(prompt_ids({**row, "prompt": prompt}, tokenizer)))


def _up_to_first_question(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return a conversation up to its first user message, or its first message if there is none."""
    roles = [message["role"] for message in messages]
    end = roles.index("user") + 1 if "user" in roles else 1
    return list(messages[:end])
