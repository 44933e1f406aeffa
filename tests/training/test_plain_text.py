"""Prompts and answers as plain text, in a training: inside the chat template, or as they are."""

import json
from pathlib import Path
from typing import Any

import pytest

from core.training.__main__ import FINISHED
from core.training.data.plain_text import AS_THEY_ARE, IN_TEMPLATE
from tests.builders.training_runs import lines_of, make_stage_run, train, write_rows

pytestmark = pytest.mark.training
PAIR = {"prompt": "Which bird quacks?", "chosen": "The duck.", "rejected": "The cow."}
ROWS: dict[str, dict[str, Any]] = {
    "sft": {"prompt": "Which bird quacks?", "completion": "The duck."},
    "reward": PAIR,
    "dpo": PAIR,
    "kto": PAIR,
    "orpo": PAIR,
    "cpo": PAIR,
    "grpo": {"prompt": "Which bird quacks?", "answer": "The duck."},
    "rloo": {"prompt": "Which bird quacks?", "answer": "The duck."},
}


def run_of(folder: Path, stage: str, **fields: Any) -> Path:
    run = make_stage_run(folder, stage, max_steps=1, num_samples=1, **fields)
    write_rows(run, *[ROWS[stage]] * 8)
    return run


@pytest.mark.parametrize("stage", ROWS)
def test_texts_of_every_stage_are_trained_inside_the_template(
    tmp_path: Path, stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tmp_path / "run", stage)
    assert train(run) == FINISHED
    assert IN_TEMPLATE in capsys.readouterr().out
    if stage != "reward":  # which answers nothing
        assert lines_of(run, "samples.jsonl")[0]["prompt"] == "Which bird quacks?"


def test_a_text_inside_the_template_has_more_tokens(tmp_path: Path) -> None:
    num_tokens = {}
    for uses_template in (True, False):
        run = run_of(tmp_path / str(uses_template), "sft", use_chat_template=uses_template)
        assert train(run) == FINISHED
        num_tokens[uses_template] = lines_of(run)[0]["num_tokens"]
    assert num_tokens[True] > num_tokens[False]


def test_the_run_of_an_earlier_version_trains_texts_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tmp_path / "run", "sft")
    job = json.loads((run / "job.json").read_text(encoding="utf-8"))
    del job["use_chat_template"]
    (run / "job.json").write_text(json.dumps(job), encoding="utf-8")
    assert train(run) == FINISHED
    assert AS_THEY_ARE in capsys.readouterr().out
