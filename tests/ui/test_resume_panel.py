"""Test the resume on other devices, or at another place, on the page without a browser."""

from typing import Any

import pytest

from core import runs
from core.job.places import only_in
from core.runs import Run
from core.runs.engines import ClusterState, Placement, Submission, write_submission
from core.runs.files import read_json
from core.training.contract.files import write_json
from tests.builders.fake_runs import NewRun
from tests.builders.fake_slurm import FakeSlurm
from tests.builders.nvml import reading, show_cards
from tests.builders.page import looking_at
from ui.events import Updates
from ui.handlers import Handlers
from ui.place_boxes import PLACE_BOXES, RESUME_BOXES

BOXES: dict[str, object] = dict.fromkeys(RESUME_BOXES, "")
RAY_ADDRESS = "http://127.0.0.1:1"


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    show_cards(monkeypatch, reading(0), reading(1))


@pytest.fixture
def stopped(new_run: NewRun) -> Run:
    return with_fields(new_run())


def with_fields(run: Run, state: str = "stopped", **fields: object) -> Run:
    """Give the job of a run other fields, and the run a state and a checkpoint."""
    path = run.folder / "job.json"
    checkpoint = run.folder / "checkpoints" / "checkpoint-3"
    checkpoint.mkdir(parents=True)
    write_json(checkpoint / "manifest.json", {"step": 3, "files": {}})
    write_json(path, {**read_json(path), **fields})
    write_json(run.folder / "status.json", {"state": state, "step": 3, "max_steps": 20})
    return runs.read(run.home, run.id)


def sent_to(run: Run, placement: Placement) -> Run:
    """Return a run that has trained on a cluster."""
    inode = run.folder.stat().st_ino
    state = ClusterState(stage="ended", word="COMPLETED")
    write_submission(Submission(run.folder, placement, "7", 1.0, inode, state))
    return runs.read(run.home, run.id)


def shown(handlers: Handlers, run: Run, **boxes: str) -> Updates:
    return handlers.runs.on_view(**looking_at(run.id, **boxes))


def is_offered(handlers: Handlers, run: Run) -> bool:
    panel: Any = shown(handlers, run)["resume_panel"]
    return bool(panel["visible"])


def resume(
    handlers: Handlers, run: Run, devices: float | None, where: str = "here", **boxes: object
) -> str:
    """Press the button of the panel. Return what is said."""
    place = {**BOXES, **boxes}
    view = looking_at(run.id)
    return str(handlers.resuming.on_resume_there(devices, where, place, **view)["run_message"])


# Where it is offered


def test_one_device_has_no_other(handlers: Handlers, stopped: Run) -> None:
    assert not is_offered(handlers, stopped)


def test_a_machine_with_two_cards_has_a_choice(
    handlers: Handlers, stopped: Run, two_cards: None
) -> None:
    assert is_offered(handlers, stopped)


def test_a_cluster_is_a_choice(handlers: Handlers, stopped: Run, slurm: FakeSlurm) -> None:
    before = handlers.runs.on_view(**looking_at(stopped.id))["fingerprint"]
    handlers.placing.on_look_for_clusters()
    assert is_offered(handlers, stopped)
    assert handlers.runs.on_tick(str(before), **looking_at(stopped.id))


def test_a_run_of_two_devices_has_a_choice(handlers: Handlers, new_run: NewRun) -> None:
    assert is_offered(handlers, with_fields(new_run(), num_devices=2, parallelism="ddp"))


@pytest.mark.parametrize("state", ["finished", "running"])
def test_only_a_run_that_ended_early_has_a_choice(
    handlers: Handlers, new_run: NewRun, state: str
) -> None:
    assert not is_offered(handlers, with_fields(new_run(), state, num_devices=2))


def test_what_a_step_takes_is_said(handlers: Handlers, new_run: NewRun) -> None:
    batch = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    run = with_fields(new_run(), num_devices=2, parallelism="fsdp", **batch)
    note = str(shown(handlers, run)["resume_note"])
    assert "An optimizer step has 16 rows on 2 devices: 2 at once on each, 4 times." in note
    assert "Its model is divided (fsdp), and needs 2 or more." in note


# What its boxes hold


def test_boxes_hold_where_a_run_has_trained(
    handlers: Handlers, stopped: Run, slurm: FakeSlurm
) -> None:
    handlers.placing.on_look_for_clusters()
    run = sent_to(stopped, Placement("slurm", partition="gpu", nodes=2))
    boxes: Any = shown(handlers, run)
    assert boxes["resume_where"]["value"] == "slurm"
    assert (boxes["resume_partition"]["value"], boxes["resume_nodes"]["value"]) == ("gpu", 2)
    assert boxes["resume_cluster_settings"]["visible"]


def test_programs_that_are_started_by_hand_are_no_choice(handlers: Handlers, stopped: Run) -> None:
    boxes: Any = shown(handlers, sent_to(stopped, Placement("torchrun", nodes=2, address="one")))
    assert [name for _label, name in boxes["resume_where"]["choices"]] == ["here", "ray"]


def test_boxes_of_a_run_of_this_machine_are_as_new(handlers: Handlers, stopped: Run) -> None:
    boxes: Any = shown(handlers, stopped)
    assert boxes["resume_where"]["value"] == "here"
    assert not boxes["resume_cluster_settings"]["visible"]


def test_boxes_of_the_same_run_keep_what_was_typed(handlers: Handlers, stopped: Run) -> None:
    again = shown(handlers, stopped, about_run=stopped.id)
    assert not again.keys() & {"resume_devices", *RESUME_BOXES}


def test_a_cluster_that_is_found_later_is_a_choice_too(
    handlers: Handlers, new_run: NewRun, slurm: FakeSlurm
) -> None:
    run = with_fields(new_run(), num_devices=2, parallelism="ddp")
    handlers.placing.on_look_for_clusters()
    again: Any = shown(handlers, run, about_run=run.id)
    assert "slurm" in [name for _label, name in again["resume_where"]["choices"]]
    assert "value" not in again["resume_where"]


def test_each_box_of_a_start_is_one_of_a_resume(handlers: Handlers, slurm: FakeSlurm) -> None:
    handlers.placing.on_look_for_clusters()
    updates = handlers.resuming.on_resume_where("slurm")
    assert {f"resume_{box}" for box in PLACE_BOXES} <= updates.keys()


# The button


def test_a_run_is_resumed_on_two_devices(handlers: Handlers, stopped: Run) -> None:
    said = resume(handlers, stopped, 2)
    assert "on 2 devices" in said
    now = runs.read(stopped.home, stopped.id)
    assert now.job.num_devices == 2
    assert now.state != "stopped"


def test_a_run_is_resumed_on_a_cluster(handlers: Handlers, stopped: Run, slurm: FakeSlurm) -> None:
    said = resume(handlers, stopped, 2, "slurm", resume_partition="gpu")
    assert "Slurm job 7" in said
    now = runs.read(stopped.home, stopped.id)
    assert now.placement == Placement("slurm", partition="gpu")
    assert now.job.num_devices == 2


def test_a_new_script_is_said(handlers: Handlers, stopped: Run, slurm: FakeSlurm) -> None:
    (stopped.folder / "submit.sh").write_text("#!/bin/bash\n#SBATCH --mem=64G\n")
    said = resume(handlers, stopped, 2, "slurm")
    assert "kept as submit.sh.before" in said


def test_a_run_of_a_cluster_is_resumed_here(
    handlers: Handlers, stopped: Run, slurm: FakeSlurm
) -> None:
    slurm.says("squeue", "")
    run = sent_to(stopped, Placement("slurm", partition="gpu"))
    resume(handlers, run, 1)
    assert runs.read(run.home, run.id).placement.is_here


@pytest.mark.parametrize(
    ("devices", "said"),
    [
        (1, "GPUs together: 1 cannot continue this run, whose model is divided"),
        (7, "GPUs together: 7 devices cannot share the"),
        (None, "GPUs together: is empty"),
    ],
)
def test_devices_that_cannot_continue_a_run_are_refused(
    handlers: Handlers, new_run: NewRun, devices: float | None, said: str
) -> None:
    run = with_fields(new_run(), num_devices=2, parallelism="fsdp")
    assert f"Not resumed. {said}" in resume(handlers, run, devices)
    assert runs.read(run.home, run.id).state == "stopped"


def test_a_run_that_is_gone_is_no_surprise(handlers: Handlers) -> None:
    said = handlers.resuming.on_resume_there(2, "here", BOXES, **looking_at("gone"))
    assert "there is no run" in str(said["run_message"])


# Guests


def test_guests_do_not_see_the_address_of_a_cluster(handlers: Handlers, stopped: Run) -> None:
    run = sent_to(stopped, Placement("ray", address=RAY_ADDRESS))
    with only_in(()):
        boxes: Any = shown(handlers, run)
    assert boxes["resume_where"]["value"] == "ray"
    assert boxes["resume_address"]["value"] == ""
    assert not boxes["resume_address"]["visible"]


def test_guests_resume_where_a_run_has_trained(handlers: Handlers, stopped: Run) -> None:
    run = sent_to(stopped, Placement("ray", address=RAY_ADDRESS))
    with only_in(()):
        assert f"does not answer: {RAY_ADDRESS}" in resume(handlers, run, 2, "ray")


def test_guests_name_no_other_address(handlers: Handlers, stopped: Run) -> None:
    with only_in(()):
        said = resume(handlers, stopped, 2, "ray", resume_address=RAY_ADDRESS)
    assert "those who came in by the token cannot name a cluster" in said
