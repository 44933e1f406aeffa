"""Test which questions an export is asked: of the rows, and of the capability suite."""

import json
from collections import Counter
from pathlib import Path

import pytest

from core.training.contract.job import Job
from core.workers.export.choosing import (
    HELD_OUT,
    NUM_QUESTIONS,
    TRAINED,
    choose_questions,
    divided,
)
from core.workers.export.questions import ExportQuestion
from tests.builders.training_runs import copy_model, make_run, write_rows

SUITE = "suite capabilities"


def questions(source: str, number: int) -> list[ExportQuestion]:
    """Return questions that differ."""
    return [ExportQuestion(f"{source} {each}", "", True, source=source) for each in range(number)]


@pytest.mark.parametrize(
    ("of_rows", "of_suite", "divides"),
    [(20, 36, (12, 4)), (3, 36, (3, 13)), (20, 1, (15, 1)), (2, 1, (2, 1)), (20, 0, (16, 0))],
)
def test_the_suite_gets_a_quarter_and_what_is_missing(
    of_rows: int, of_suite: int, divides: tuple[int, int]
) -> None:
    found = divided(questions("row", of_rows), questions("test", of_suite))
    sources = Counter(each.source for each in found)
    assert (sources["row"], sources["test"]) == divides
    assert len({each.shown for each in found}) == sum(divides)


def test_tests_of_the_suite_are_spread_over_it() -> None:
    found = divided(questions("row", 20), questions("test", 36))
    assert [each.shown for each in found[12:]] == ["test 0", "test 9", "test 18", "test 27"]


def chosen(folder: Path) -> tuple[ExportQuestion, ...]:
    """Return the questions for the run in a folder."""
    job = Job.from_json(json.loads((folder / "job.json").read_text(encoding="utf-8")))
    return choose_questions(job, folder)[0]


def sources_of(folder: Path) -> Counter[str]:
    """Return the number of questions by their source."""
    return Counter(each.source for each in chosen(folder))


def test_held_out_rows_come_before_rows_of_the_training(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "runs" / "run", eval_dataset="data/eval.jsonl")
    assert sources_of(folder) == {HELD_OUT: 4, TRAINED: 8, SUITE: 4}


def test_a_prompt_of_the_suite_that_is_in_the_data_is_asked_once(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "runs" / "run")
    of_suite = [each.shown for each in chosen(folder) if each.source == SUITE]
    answer = {"role": "assistant", "content": "Yes."}
    question = {"role": "user", "content": of_suite[0]}
    write_rows(folder, {"messages": [question, answer]})
    shown = [each.shown for each in chosen(folder)]
    assert shown[0] == of_suite[0]
    assert len(set(shown)) == NUM_QUESTIONS


def test_plain_texts_are_asked_beside_the_suite(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "runs" / "run", stage="cpt")
    write_rows(folder, *({"text": f"The {each} needle lies in the shop."} for each in range(20)))
    assert sources_of(folder) == {TRAINED: 12, SUITE: 4}


def test_a_model_without_a_template_is_asked_the_suite_as_plain_text(tmp_path: Path) -> None:
    model = copy_model(tmp_path / "model")
    (model / "chat_template.jinja").unlink()
    folder = make_run(tmp_path / "runs" / "run", stage="cpt", model=str(model))
    write_rows(folder, {"text": "The needle lies in the shop."})
    (_row, *of_suite) = chosen(folder)
    assert [each.source for each in of_suite] == [SUITE] * 15
    assert [each.text for each in of_suite] == [each.shown for each in of_suite]
