"""Choose the questions of a verification: rows of the data, and tests of the capability suite."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from core.runs import Home, read
from core.runs.checks import find_suite
from core.runs.results import checking
from core.training.contract.checks.suite import Suite
from core.training.contract.job import Job
from core.training.data.chat import ChatTemplate
from core.training.data.model_rows import rows_for_model
from core.training.data.rows import Rows, read_rows
from core.workers.export.questions import ExportQuestion, ids_of

NUM_QUESTIONS = 16
NUM_OF_SUITE = 4
"""Questions of the suite among them; more where the data has too few."""
MAX_PROMPT_TOKENS = 512
PLAIN_PROMPT_TOKENS = 16
"""Tokens of a plain text that are taken as a prompt."""
HELD_OUT, TRAINED = "held-out rows", "training rows"
CAPABILITIES = "capabilities"
"""Suite that comes with Tailor, for real models and for the demo."""


def choose_questions(job: Job, run_folder: Path) -> tuple[tuple[ExportQuestion, ...], Any]:
    """Return (questions of a run's rows and of the capability suite; its tokenizer).

    Held-out rows come first. Raises TrainingError if the rows are not there any more.
    """
    tokenizer, rows = rows_for_model(job, rows_of_run(job, run_folder))
    run = read(Home(run_folder.parent.parent), run_folder.name)
    suite = find_suite(CAPABILITIES, checking.suite_folders(run))
    of_rows = usable(_of_rows(rows, tokenizer), tokenizer)
    of_suite = usable(_of_suite(suite, tokenizer), tokenizer, len(suite.tests))
    known = {each.text for each in of_rows}
    return divided(of_rows, [each for each in of_suite if each.text not in known]), tokenizer


def divided(
    of_rows: Sequence[ExportQuestion], of_suite: Sequence[ExportQuestion]
) -> tuple[ExportQuestion, ...]:
    """Return 16 questions, 4 of them of the suite; where one has too few, more of the other."""
    num_rows = min(len(of_rows), NUM_QUESTIONS - min(NUM_OF_SUITE, len(of_suite)))
    num_of_suite = min(len(of_suite), NUM_QUESTIONS - num_rows)
    spread = [len(of_suite) * index // num_of_suite for index in range(num_of_suite)]
    return (*of_rows[:num_rows], *(of_suite[index] for index in spread))


def rows_of_run(job: Job, run_folder: Path) -> Rows:
    """Return the rows of a run's data. Raises TrainingError if they are not there any more."""
    return read_rows(
        run_folder,
        job.dataset,
        job.eval_dataset,
        job.eval_fraction,
        job.seed,
        stage=job.stage,
    )


def usable(
    questions: Iterable[ExportQuestion], tokenizer: Any, num_most: int = NUM_QUESTIONS
) -> tuple[ExportQuestion, ...]:
    """Return the first questions of a usable length, each text once."""
    found: dict[str, ExportQuestion] = {}
    for question in questions:
        if 0 < len(ids_of(question, tokenizer)) <= MAX_PROMPT_TOKENS:
            found.setdefault(question.text, question)
        if len(found) >= num_most:
            break
    return tuple(found.values())


def _of_rows(rows: Rows, tokenizer: Any) -> Iterator[ExportQuestion]:
    held_out = ((HELD_OUT, row) for row in rows.eval or ())
    for source, row in chain(held_out, ((TRAINED, row) for row in rows.train)):
        yield replace(_question(row, tokenizer), source=source)


def _of_suite(suite: Suite, tokenizer: Any) -> Iterator[ExportQuestion]:
    """Yield the prompts of a suite; as plain text if the model has no chat template."""
    for test in suite.tests:
        if test.tools:
            continue
        if tokenizer.chat_template:
            row: Mapping[str, Any] = {"prompt": list(test.messages)}
        else:
            row = {"prompt": test.prompt}
        yield replace(_question(row, tokenizer), source=f"suite {CAPABILITIES}")


def _question(row: Mapping[str, Any], tokenizer: Any) -> ExportQuestion:
    if "text" in row:
        ids = tokenizer(row["text"], add_special_tokens=False)["input_ids"]
        text = tokenizer.decode(ids[:PLAIN_PROMPT_TOKENS])
        return ExportQuestion(text, text, True)
    messages = row["prompt"] if "prompt" in row else row["messages"]
    if isinstance(messages, str):
        return ExportQuestion(messages, messages, True)
    if "prompt" not in row:
        roles = [message["role"] for message in messages]
        messages = messages[: roles.index("user") + 1 if "user" in roles else 1]
    text = ChatTemplate(tokenizer).render(messages, opens_answer=True)
    return ExportQuestion(str(messages[-1].get("content") or ""), text, False, tuple(messages))
