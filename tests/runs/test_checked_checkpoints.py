"""Checks of a checkpoint: how it is named, and where its results are kept."""

import pytest

from core.job import SpecError
from core.runs import Home, Run, read
from core.runs.checks import SuiteResult
from core.runs.results import checking
from core.training.contract.checks.suite_files import parse_suite
from core.training.contract.files import write_json
from tests.builders.fake_runs import bare_run
from ui.render.checks import results

SUITE = parse_suite(b'{"prompt": "Who are you?", "exact": "Pip"}\n' * 2, "identity")
ANSWERS = {None: ("Pip", "Pip"), 20: ("Pip", "A model")}
"""Checkpoint -> its answers."""


@pytest.fixture
def run(home: Home) -> Run:
    """Return a run with checkpoints of step 20 and 40 and an unfinished one, and no result."""
    folder = bare_run(home, "made-up")
    for step in (20, 40, 60):
        checkpoint = folder / "checkpoints" / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        if step < 60:
            write_json(checkpoint / "trainer_state.json", {})
    return read(home, "made-up")


def test_a_checkpoint_is_named_by_its_step(home: Home, run: Run) -> None:
    assert checking.find_checkpoint(home, "made-up@40") == (run, 40)
    assert checking.find_checkpoint(home, "latest@20") == (run, 20)
    assert checking.find_checkpoint(home, "made-up") == (run, None)


@pytest.mark.parametrize("step", ["60", "7", "base", "", "4" * 5000])
def test_a_step_without_a_checkpoint_names_those_there_are(home: Home, run: Run, step: str) -> None:
    with pytest.raises(SpecError, match="has no checkpoint of step") as error:
        checking.find_checkpoint(home, f"made-up@{step}")
    assert "choose made-up@40, made-up@20" in str(error.value)
    assert len(str(error.value)) < 300


def test_a_run_without_a_result_points_to_its_checkpoints(run: Run) -> None:
    with pytest.raises(SpecError, match="check a checkpoint, such as made-up@40"):
        checking.check(run, ())


def test_results_of_a_checkpoint_are_kept_beside_those_of_the_run(run: Run) -> None:
    for step, answers in ANSWERS.items():
        folder = checking.results_folder(run, step)
        folder.mkdir(parents=True)
        result = SuiteResult.of_answers(SUITE, 60, ("A model", "A model"), answers)
        write_json(folder / "identity.json", result.to_file())
    assert [each.after for each in checking.results_of(run)] == [2]
    assert [each.after for each in checking.results_of(run, 20)] == [1]
    assert checking.checked_steps(run) == (20,)
    shown = results(run)
    assert "<summary>The checkpoint of step 20: identity 1 of 2</summary>" in shown
    assert shown.index("2 of 2 after") < shown.index("1 of 2 after")
