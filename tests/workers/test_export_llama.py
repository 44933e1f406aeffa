"""Test answers of llama.cpp's server in its own process, with a stand-in for its package."""

from pathlib import Path

import pytest

from core.after_training.export.records import ExportRequest
from core.training.contract.failures import TrainingError
from core.workers.export.llama import answers_of_gguf
from core.workers.export.questions import ExportAnswer, ExportQuestion
from core.workers.export.task import ExportTask
from tests.builders.paths import ROOT

TOOLS = ROOT / "tests" / "builders" / "fake_llama"
QUESTIONS = [ExportQuestion(text, text, True) for text in ("one two", "three", "four five six")]
TRAINED = [ExportAnswer((0, 1), (), 0, None, True) for _question in QUESTIONS]


@pytest.fixture
def task(tmp_path: Path) -> ExportTask:
    """Return an export whose converters are the stand-in."""
    return ExportTask(tmp_path, ExportRequest("gguf", "gguf", "trained", "", "", tools=str(TOOLS)))


def test_the_log_of_llama_cpp_does_not_touch_the_answers(task: ExportTask) -> None:
    (task.folder / "m.gguf").write_text("noisy")
    found, notes = answers_of_gguf(task, task.folder / "m.gguf", QUESTIONS, TRAINED)
    assert [len(answer.prompt) for answer in found] == [2, 1, 3]
    assert notes == ()


def test_a_file_that_llama_cpp_cannot_read_is_no_answer(task: ExportTask) -> None:
    (task.folder / "m.gguf").write_text("broken")
    with pytest.raises(TrainingError, match="failed to load the model"):
        answers_of_gguf(task, task.folder / "m.gguf", QUESTIONS, TRAINED)


def test_a_server_that_dies_leaves_no_earlier_answers(task: ExportTask) -> None:
    (task.folder / "m.gguf").write_text("")
    answers_of_gguf(task, task.folder / "m.gguf", QUESTIONS, TRAINED)
    dying = [ExportQuestion("die", "die", True)]
    with pytest.raises(TrainingError, match="could not do it"):
        answers_of_gguf(task, task.folder / "m.gguf", dying, TRAINED[:1])
