"""Test the choice where a run trains, on the page without a browser."""

from pathlib import Path
from typing import Any

import pytest

from core.runs import listing
from core.runs.engines import Placement
from tests.builders.fake_slurm import FakeSlurm, put_on_path
from tests.builders.page import demo
from ui.handlers import Handlers

CHOSEN: dict[str, Any] = {"where": "slurm", "partition": "gpu", "time_limit": "30", "nodes": 1}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    slurm = put_on_path(tmp_path / "commands", monkeypatch)
    slurm.says("squeue", "7|PENDING|Priority|0|\n")
    return slurm


def test_choice_is_hidden_without_a_cluster(
    handlers: Handlers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert handlers.placing.on_look_for_clusters()["where_panel"]["visible"] is False


def test_choice_is_hidden_while_the_cluster_does_not_answer(
    handlers: Handlers, slurm: FakeSlurm
) -> None:
    slurm.refuses("sinfo", "Unable to contact slurm controller\n")
    assert handlers.placing.on_look_for_clusters()["where_panel"]["visible"] is False


def test_choice_offers_the_clusters_that_are_found(handlers: Handlers, slurm: FakeSlurm) -> None:
    shown = handlers.placing.on_look_for_clusters()
    assert shown["where_panel"]["visible"] is True
    assert [value for _label, value in shown["where"]["choices"]] == ["here", "slurm"]


def test_partitions_of_the_site_are_choices(handlers: Handlers, slurm: FakeSlurm) -> None:
    handlers.placing.on_look_for_clusters()
    shown = handlers.placing.on_where("slurm")
    assert [value for _label, value in shown["partition"]["choices"]] == ["", "gpu", "cpu"]


def test_this_machine_has_no_settings_of_a_cluster(handlers: Handlers, slurm: FakeSlurm) -> None:
    handlers.placing.on_look_for_clusters()
    assert handlers.placing.on_where("here")["cluster_settings"]["visible"] is False


def test_start_sends_the_run_to_the_cluster(handlers: Handlers, slurm: FakeSlurm) -> None:
    shown = handlers.runs.on_start(**CHOSEN, **demo())
    (run,) = listing.list_runs(handlers.home)
    assert run.submission
    assert run.submission.placement == Placement("slurm", partition="gpu", time="30")
    assert "Slurm job 7" in str(shown["start_message"])


def test_run_on_a_cluster_is_not_moved_in_the_queue(handlers: Handlers, slurm: FakeSlurm) -> None:
    shown = handlers.runs.on_start(**CHOSEN, **demo())
    assert shown["move_up"]["visible"] is False
    assert "Waiting on Slurm job 7" in str(shown["run_header"])


def test_cluster_does_not_make_runs_of_this_machine_wait(
    handlers: Handlers, slurm: FakeSlurm
) -> None:
    slurm.says("squeue", "7|RUNNING|None|0|\n")
    shown = handlers.runs.on_start(**CHOSEN, **demo())
    assert shown["start"]["value"] == "Start training"


@pytest.mark.parametrize(
    ("boxes", "said"),
    [
        ({"time_limit": "soon"}, "time: "),
        ({"partition": "a\nb"}, "partition: "),
        ({"nodes": 0}, "nodes: "),
        ({"where": "mars"}, "no engine"),
    ],
)
def test_box_that_a_cluster_would_not_understand_creates_no_run(
    handlers: Handlers, slurm: FakeSlurm, boxes: dict[str, Any], said: str
) -> None:
    shown = handlers.runs.on_start(**{**CHOSEN, **boxes}, **demo())
    assert said in str(shown["start_message"])
    assert listing.list_runs(handlers.home) == ()
