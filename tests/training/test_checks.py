"""Checks of a model: answers one by one and together, and during a training."""

import json
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig

from core.models import DEMO_DIR
from core.runs.checks import find_suite, folders_of
from core.training.contract.checks.scoring import judge
from core.training.contract.checks.suite import Suite
from core.training.contract.checks.suite_files import parse_suite, to_lines
from core.training.contract.failures import Stopped, TrainingError
from core.training.contract.job import Job
from core.training.loop.checks import Examinee
from core.workers.trained_model import TrainedModel, load_trained
from tests.builders.training_runs import FINISHED, lines_of, make_run, train

CHOICES = b"""\
{"prompt": "What is the capital of France?", "choice": ["The capital of France is Paris.", \
"The capital of France is Rome."], "answer": 0}
{"prompt": "What colour is the sky?", "choice": ["A hen is young.", "Blue."], "answer": 1}
"""


@pytest.fixture(scope="module")
def demo() -> TrainedModel:
    """Return the demo model."""
    return load_trained(Job(model=str(DEMO_DIR), dataset=""), None)


@pytest.fixture(scope="module")
def capabilities() -> Suite:
    """Return the capabilities of the demo model."""
    return find_suite("capabilities", folders_of(True))


def test_the_demo_model_has_its_capabilities(demo: TrainedModel, capabilities: Suite):
    answers = Examinee(demo.model, demo.tokenizer, 32).answers(capabilities)
    assert judge(capabilities, answers) == (True,) * 36


def test_answers_together_are_those_one_by_one(demo: TrainedModel, capabilities: Suite):
    some = Suite("some", (*capabilities.tests[:12], *parse_suite(CHOICES, "c").tests))
    together = Examinee(demo.model, demo.tokenizer, 32).answers(some)
    assert Examinee(demo.model, demo.tokenizer, 1).answers(some) == together


def test_the_likelier_choice_is_chosen(demo: TrainedModel):
    (first, _second) = Examinee(demo.model, demo.tokenizer, 32).answers(parse_suite(CHOICES, "c"))
    assert first == "The capital of France is Paris."


def test_an_answer_is_as_long_as_its_test_allows(demo: TrainedModel):
    lines = b'{"prompt": "Who are you?", "exact": "I am", "max_new_tokens": 2}\n'
    lines += b'{"prompt": "Who are you?", "exact": "I am"}\n'
    short, whole = Examinee(demo.model, demo.tokenizer, 2).answers(parse_suite(lines, "s"))
    assert whole.startswith(short)
    assert len(short) < len(whole)


def test_a_batch_that_does_not_fit_is_halved(
    demo: TrainedModel, capabilities: Suite, monkeypatch: pytest.MonkeyPatch
):
    generate = demo.model.generate

    def of_few_rows(input_ids: torch.Tensor, **settings: object) -> torch.Tensor:
        if len(input_ids) > 4:
            raise torch.OutOfMemoryError
        return generate(input_ids=input_ids, **settings)

    monkeypatch.setattr(demo.model, "generate", of_few_rows)
    examinee = Examinee(demo.model, demo.tokenizer, 16)
    assert all(judge(capabilities, examinee.answers(capabilities)))
    assert examinee.batch_size <= 4


def test_long_tests_are_answered_in_smaller_batches(
    demo: TrainedModel, capabilities: Suite, monkeypatch: pytest.MonkeyPatch
):
    sizes = []
    generate = demo.model.generate

    def noting(input_ids: torch.Tensor, generation_config: GenerationConfig, **settings: object):
        num_rows, prompt_tokens = input_ids.shape
        sizes.append((num_rows, num_rows * (prompt_tokens + generation_config.max_new_tokens)))
        return generate(input_ids=input_ids, generation_config=generation_config, **settings)

    monkeypatch.setattr(demo.model, "generate", noting)
    long = parse_suite(json.dumps({"prompt": "x " * 300, "exact": "a"}).encode(), "l").tests
    suite = Suite("mixed", (*capabilities.tests[:8], *long))
    Examinee(demo.model, demo.tokenizer, 8, max_tokens=500).answers(suite)
    assert sum(rows for rows, _tokens in sizes) == len(suite.tests)
    assert [rows for rows, tokens in sizes if tokens > 500] == [1]
    assert max(rows for rows, _tokens in sizes) > 1


def test_a_prompt_beyond_the_model_is_named(demo: TrainedModel):
    suite = parse_suite(json.dumps({"prompt": "x " * 9000, "exact": "a"}).encode(), "long")
    with pytest.raises(TrainingError, match="suite long, line 1: its prompt has"):
        Examinee(demo.model, demo.tokenizer, 2).answers(suite)


def test_a_stop_ends_the_answers(demo: TrainedModel, capabilities: Suite):
    examinee = Examinee(demo.model, demo.tokenizer, 2, is_stopped=lambda: True)
    with pytest.raises(Stopped):
        examinee.answers(capabilities)


@pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning")
def test_a_training_checks_itself_every_few_steps(tmp_path: Path, capabilities: Suite):
    fields = {"max_steps": 4, "check_steps": 2, "check_suites": "few.jsonl", "learning_rate": 3e-2}
    run = make_run(tmp_path / "checked", **fields)
    few = Suite("few", capabilities.tests[:6])
    (run / "few.jsonl").write_text(to_lines(few), encoding="utf-8")
    assert train(run) == FINISHED
    rows = [row for row in lines_of(run) if "check_few" in row]
    assert [row["step"] for row in rows] == [0, 2, 4]
    assert rows[0]["check_few"] == 100
    plain = make_run(tmp_path / "plain", **fields | {"check_steps": 0})
    assert train(plain) == FINISHED
    assert _losses(run) == _losses(plain)


def _losses(run: Path) -> list[float]:
    return [row["loss"] for row in lines_of(run) if "loss" in row]
