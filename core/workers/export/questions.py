"""Questions that an exported model is asked, and the answers of transformers to them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from core.training.contract.job import Job
from core.training.data.chat import ChatTemplate
from core.workers.export.shards import read_header
from core.workers.trained_model import load_trained

MAX_NEW_TOKENS = 48
BYTES_PER_NUMBER = {torch.float32: 4, torch.bfloat16: 2}


@dataclass(frozen=True)
class ExportQuestion:
    """Prompt as text, with what a template puts around it."""

    shown: str
    text: str
    adds_special_tokens: bool
    """True for plain text, before which a tokenizer may put its own start token."""
    messages: tuple[Mapping[str, Any], ...] = ()
    """Messages that the text was rendered from; none for plain text."""
    source: str = ""
    """Where it is from, as users read it."""


@dataclass(frozen=True)
class ExportAnswer:
    """Greedy answer to a question."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    """Tokens of the answer, without the end token."""
    first_token: int
    """First token of the answer as trained, for an export too."""
    first_logprob: float | None
    """Log-probability of it; None if a program does not tell."""
    ended: bool
    """True if it reached an end token."""


def ids_of(question: ExportQuestion, tokenizer: Any) -> tuple[int, ...]:
    """Return the prompt of a question in tokens, as this tokenizer and its template make them."""
    text = question.text
    if question.messages:
        text = ChatTemplate(tokenizer).render(list(question.messages), opens_answer=True)
    found = tokenizer(text, add_special_tokens=question.adds_special_tokens)
    return tuple(found["input_ids"])


def answers_as_trained(
    job: Job, run_folder: Path, questions: Sequence[ExportQuestion], tokenizer: Any
) -> tuple[ExportAnswer, ...]:
    """Return the answers of the model as it was trained: its base and its adapter."""
    loaded = load_trained(job, run_folder / "output")
    return answers(loaded.model, tokenizer, questions)


def answers_of_folder(
    folder: Path, job: Job, questions: Sequence[ExportQuestion], trained: Sequence[ExportAnswer]
) -> tuple[ExportAnswer, ...]:
    """Return the answers of an exported folder, with its own tokenizer."""
    own = Job(model=str(folder), dataset=job.dataset, method="full", dtype=job.dtype)
    loaded = load_trained(own, None)
    firsts = [each.first_token for each in trained]
    return answers(loaded.model, loaded.tokenizer, questions, firsts)


def answers(
    model: Any,
    tokenizer: Any,
    questions: Sequence[ExportQuestion],
    first_tokens: Sequence[int] = (),
) -> tuple[ExportAnswer, ...]:
    """Return a model's greedy answers. Prompts are padded on their left, as `generate` needs.

    `first_tokens` are those of which the probability is asked, by default the likeliest.
    """
    model.eval()
    prompts = [ids_of(question, tokenizer) for question in questions]
    longest = max(map(len, prompts))
    pad = tokenizer.pad_token_id or 0
    padded = [[pad] * (longest - len(ids)) + list(ids) for ids in prompts]
    mask = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts]
    ends = _ends(model, tokenizer)
    with torch.no_grad():
        output = model.generate(
            input_ids=torch.tensor(padded, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=pad,
            eos_token_id=ends or None,
            output_logits=True,
            return_dict_in_generate=True,
        )
    first = output.logits[0].float().log_softmax(-1).cpu()
    found = []
    for index, ids in enumerate(prompts):
        new = output.sequences[index, longest:].tolist()
        token = first_tokens[index] if first_tokens else int(first[index].argmax())
        found.append(_answer(ids, new, token, float(first[index, token]), ends))
    return tuple(found)


def choose_dtype(weight_files: Sequence[Path], job: Job) -> Job:
    """Return a job whose models are computed in float32 on a CPU if that fits into its memory."""
    if torch.cuda.is_available():
        return job
    import psutil

    num_bytes = sum(path.stat().st_size for path in weight_files)
    free = psutil.virtual_memory().available
    is_16_bit = any(
        entry.get("dtype") in ("BF16", "F16")
        for path in weight_files
        for entry in read_header(path).values()
    )
    in_float32 = num_bytes * 2 if is_16_bit else num_bytes
    return replace(job, dtype="float32" if in_float32 * 1.3 < free else "bfloat16")


def _ends(model: Any, tokenizer: Any) -> list[int]:
    ends = model.generation_config.eos_token_id
    if ends is None:
        ends = tokenizer.eos_token_id
    if ends is None:
        return []
    if isinstance(ends, list):
        return list(ends)
    return [ends]


def _answer(
    prompt: tuple[int, ...], new: Sequence[int], token: int, logprob: float, ends: Sequence[int]
) -> ExportAnswer:
    tokens = []
    for each in new:
        if each in ends:
            break
        tokens.append(each)
    return ExportAnswer(prompt, tuple(tokens), token, logprob, len(tokens) < len(new))
