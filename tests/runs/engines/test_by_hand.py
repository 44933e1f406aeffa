"""Test the lines that start a training on several machines by hand, and how it is watched."""

import os
import time
from pathlib import Path

import pytest

from core.job import SpecError
from core.runs.engines import ENGINES, Placement, Submission, engine_of
from core.training.contract.files import write_json

BY_HAND = ENGINES["torchrun"]
TWO = Placement("torchrun", nodes=2, address="first:29501")


def stage_of(folder: Path) -> str:
    return BY_HAND.ask([Submission(folder, TWO)])[folder.name].stage


def beat(folder: Path, seconds_ago: float = 0, **words: object) -> None:
    """Leave the heartbeat of the first process."""
    path = folder / "ranks" / "0.json"
    path.parent.mkdir(exist_ok=True)
    write_json(path, {"pid": 1, **words})
    moment = time.time() - seconds_ago
    os.utime(path, (moment, moment))


def test_line_names_the_first_machine_and_all_processes(tmp_path: Path) -> None:
    line = BY_HAND.instructions(tmp_path, TWO, 4)
    for part in ("--nnodes=2", "--nproc-per-node=4", "--rdzv-endpoint=first:29501"):
        assert part in line


def test_line_goes_to_the_run_folder_whatever_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "it's here"
    assert f"""cd '{tmp_path}/it'"'"'s here' && """ in BY_HAND.instructions(folder, TWO, 1)


def test_one_machine_is_refused() -> None:
    with pytest.raises(SpecError, match="one machine"):
        engine_of(Placement("torchrun"))


@pytest.mark.parametrize("address", ["first:999999", "http://first", "a:b"])
def test_first_machine_is_checked_before_a_run_is_created(address: str) -> None:
    with pytest.raises(SpecError, match="is not HOST or HOST:PORT"):
        engine_of(Placement("torchrun", nodes=2, address=address))


def test_field_of_another_engine_is_refused() -> None:
    with pytest.raises(SpecError, match="partition: torchrun by hand has no use for it"):
        engine_of(Placement("torchrun", nodes=2, partition="gpu"))


def test_run_waits_until_the_lines_are_typed(tmp_path: Path) -> None:
    assert stage_of(tmp_path) == "waiting"


def test_run_that_beats_is_running(tmp_path: Path) -> None:
    beat(tmp_path)
    assert stage_of(tmp_path) == "running"


def test_run_that_is_silent_for_long_has_ended(tmp_path: Path) -> None:
    beat(tmp_path, seconds_ago=500)
    assert stage_of(tmp_path) == "ended"


def test_run_whose_first_process_said_so_has_ended(tmp_path: Path) -> None:
    beat(tmp_path, has_ended=True)
    assert stage_of(tmp_path) == "ended"


def test_run_that_was_stopped_before_it_began_has_ended(tmp_path: Path) -> None:
    (tmp_path / "stop").touch()
    assert stage_of(tmp_path) == "ended"


def test_submitting_again_forgets_old_heartbeats(tmp_path: Path) -> None:
    beat(tmp_path)
    BY_HAND.submit(tmp_path, TWO, 1)
    assert stage_of(tmp_path) == "waiting"
