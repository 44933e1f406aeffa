"""Checks of trained models by the program itself: every kind of result, and what is asked once."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from core.models import DEMO_DIR
from core.runs.checks import find_suite, folders_of
from core.training.contract.checks.suite import Suite
from core.training.contract.checks.suite_files import to_lines
from core.training.contract.job import Job
from core.training.loop.checks import Examinee
from core.workers.checks.session import CheckSession
from core.workers.trained_model import load_trained
from tests.builders.training_runs import FINISHED, make_run, make_stage_run, train

pytestmark = pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning")
KNOWN = Suite("known", find_suite("capabilities", folders_of(True)).tests[:6])
"""Tests that the demo model passes before a training."""
FAST: dict[str, Any] = {"max_steps": 3, "learning_rate": 3e-2, "eval_dataset": "data/eval.jsonl"}
ROUNDING = 1e-4


def check(run: Path, cache: Path, *suites: Suite) -> Mapping[str, Any]:
    """Return the answers of both sides, as the program sends them."""
    request = {
        "job": asdict(Job.from_json(json.loads((run / "job.json").read_text()))),
        "weights": str(run / "output"),
        "run": str(run),
        "suites": [{"name": suite.name, "lines": to_lines(suite)} for suite in suites],
        "cache": str(cache),
    }
    return CheckSession.of(request, lambda _share: None).run()


@pytest.mark.training
def test_answers_before_are_asked_once_for_all_runs_over_a_model(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", **FAST)
    assert train(run) == FINISHED
    first = check(run, tmp_path / "cache", KNOWN)
    assert first["cached"] == []
    assert first["after"]["known"] != first["before"]["known"]
    assert first["perplexity"]["num_rows"] == 4
    other = make_run(tmp_path / "other", **FAST, seed=7)
    assert train(other) == FINISHED
    second = check(other, tmp_path / "cache", KNOWN)
    assert second["cached"] == ["known"]
    assert second["before"] == {"known": list(first["before"]["known"])}
    fewer = Suite("known", KNOWN.tests[:5])
    assert check(other, tmp_path / "cache", fewer)["cached"] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "fields"),
    [
        ("sft", {"method": "full"}),
        ("sft", {"method": "qlora"}),
        ("dpo", {"method": "lora"}),
        ("dpo", {"method": "full"}),
    ],
    ids=str,
)
def test_every_kind_of_result_answers_as_the_model_before_did(
    tmp_path: Path, stage: str, fields: dict[str, object]
) -> None:
    run = make_stage_run(tmp_path / "run", stage, **FAST, **fields)
    if stage == "dpo":
        (run / "data" / "eval.jsonl").write_bytes((run / "data" / "train.jsonl").read_bytes())
    assert train(run) == FINISHED
    answers = check(run, tmp_path / "cache", KNOWN)
    before = answers["before"]["known"]
    assert len(answers["after"]["known"]) == len(before) == len(KNOWN.tests)
    assert answers["perplexity"]["before"] != answers["perplexity"]["after"]
    if fields["method"] != "qlora":  # whose base has lost some digits
        alone = load_trained(Job(model=str(DEMO_DIR), dataset=""), None)
        expected = Examinee(alone.model, alone.tokenizer, 1).answers(KNOWN)
        assert tuple(before) == expected


def test_likelihoods_together_are_those_one_by_one() -> None:
    demo = load_trained(Job(model=str(DEMO_DIR), dataset=""), None)
    examinee = Examinee(demo.model, demo.tokenizer, 8)
    prompts = ["Who are you?", "A hen is young. " * 9, "Seven"]
    pairs = [
        (demo.tokenizer(each).input_ids, demo.tokenizer(" blue").input_ids) for each in prompts
    ]
    with torch.no_grad():
        together = examinee._log_likelihoods(pairs)
        alone = [examinee._log_likelihoods([pair])[0] for pair in pairs]
    assert together == pytest.approx(alone, abs=ROUNDING)
