"""Run of an earlier version of Tailor: it is still listed, shown, resumed and bundled.

tests/data/run_of_the_first_layout.zip holds one with its program: stopped after 9 of 40 steps.
`MODEL` stands in it for the folder of the demo model.
"""

import json
import shutil
import zipfile
from pathlib import Path

import pytest

from core import runs
from core.after_training import bundle
from core.models import DEMO_DIR
from core.runs import Home, Run, launch, queue
from core.runs.creation import PROGRAM
from tests.builders.paths import DATA

RUN_ID = "20261129-080000-demo-lora"
ARCHIVE = DATA / "run_of_the_first_layout.zip"
STEPS_DONE, ALL_STEPS = 9, 40


@pytest.fixture
def old_run(home: Home) -> Run:
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(home.runs)
    folder = home.runs / RUN_ID
    for path in (
        folder / "job.json",
        folder / "checkpoints" / f"checkpoint-{STEPS_DONE}" / "manifest.json",
    ):
        path.write_text(path.read_text().replace('"MODEL"', json.dumps(str(DEMO_DIR))))
    return runs.read(home, RUN_ID)


def test_it_is_listed(old_run: Run) -> None:
    assert [run.id for run in runs.listing.list_runs(old_run.home)] == [RUN_ID]


def test_it_shows_how_far_it_came(old_run: Run) -> None:
    assert (old_run.state, old_run.step, old_run.max_steps) == ("stopped", STEPS_DONE, ALL_STEPS)


def test_its_checkpoint_is_found(old_run: Run) -> None:
    assert [checkpoint.step for checkpoint in old_run.checkpoints] == [STEPS_DONE]


def test_its_curve_is_read(old_run: Run) -> None:
    assert [row["step"] for row in old_run.metrics()] == list(range(1, STEPS_DONE + 1))


def test_it_can_be_asked_for_again(old_run: Run) -> None:
    assert old_run.fields_again()["lora_r"] == 1


def test_its_bundle_holds_its_own_program(old_run: Run, tmp_path: Path) -> None:
    bundle.write_bundle(old_run, tmp_path / "bundle.zip")
    with zipfile.ZipFile(tmp_path / "bundle.zip") as opened:
        # a file that the current program does not have
        assert "training/acceleration.py" in opened.namelist()


@pytest.mark.training
def test_it_resumes_with_its_own_program_to_the_end(old_run: Run) -> None:
    queue.submit(old_run.home, old_run)
    ended = launch.wait(old_run.home, RUN_ID, seconds=120)
    assert (ended.state, ended.step, ended.error) == ("finished", ALL_STEPS, "")


@pytest.mark.slow
@pytest.mark.training
def test_it_resumes_with_the_program_of_today(old_run: Run) -> None:
    shutil.rmtree(old_run.folder / "training")
    shutil.copytree(PROGRAM, old_run.folder / "training")
    queue.submit(old_run.home, old_run)
    ended = launch.wait(old_run.home, RUN_ID, seconds=120)
    assert (ended.state, ended.step, ended.error) == ("finished", ALL_STEPS, "")
