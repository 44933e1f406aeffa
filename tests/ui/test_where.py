"""Test the choice where a run trains, on the page without a browser."""

import inspect
from typing import Any

import pytest

from core.job import SpecError
from core.job.places import only_in
from core.runs import listing, queue
from core.runs.engines import Placement
from tests.builders.fake_slurm import FakeSlurm
from tests.builders.nvml import reading, show_cards
from tests.builders.page import FormPage, demo
from ui.events import Updates
from ui.handlers import NO_ANSWER, Handlers
from ui.handlers.answer import Answer
from ui.handlers.placing import placement_of
from ui.place_boxes import PLACE_BOXES

BOXES: dict[str, object] = {"partition": "gpu", "time_limit": "30", "nodes": 1}
CHOSEN: dict[str, Any] = {"where": "slurm", "place": BOXES}


@pytest.fixture
def ray_address(monkeypatch: pytest.MonkeyPatch) -> str:
    """Return an address at which nothing answers, where the environment names none."""
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return "http://127.0.0.1:1"


def offered(shown: Updates) -> list[str]:
    choices: Any = shown["where"]
    return [value for _label, value in choices["choices"]]


def is_visible(shown: Updates, name: str) -> bool:
    update: Any = shown[name]
    return bool(update["visible"])


def test_slurm_is_not_offered_without_its_commands(
    handlers: Handlers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert offered(handlers.placing.on_look_for_clusters()) == ["here", "ray"]


def test_slurm_is_not_offered_while_it_does_not_answer(
    handlers: Handlers, slurm: FakeSlurm
) -> None:
    slurm.refuses("sinfo", "Unable to contact slurm controller\n")
    assert offered(handlers.placing.on_look_for_clusters()) == ["here", "ray"]


def test_choice_offers_the_clusters_that_are_found(handlers: Handlers, slurm: FakeSlurm) -> None:
    assert offered(handlers.placing.on_look_for_clusters()) == ["here", "slurm", "ray"]


def test_partitions_of_the_site_are_choices(handlers: Handlers, slurm: FakeSlurm) -> None:
    handlers.placing.on_look_for_clusters()
    shown: Any = handlers.placing.on_where(NO_ANSWER, "slurm")
    assert [value for _label, value in shown["partition"]["choices"]] == ["", "gpu", "cpu"]


def test_slurm_asks_for_no_address(handlers: Handlers, slurm: FakeSlurm) -> None:
    handlers.placing.on_look_for_clusters()
    shown = handlers.placing.on_where(NO_ANSWER, "slurm")
    assert [is_visible(shown, name) for name in ("partition", "address")] == [True, False]


def test_ray_asks_for_its_address_and_says_whom_it_trusts(
    handlers: Handlers, ray_address: str
) -> None:
    shown = handlers.placing.on_where(NO_ANSWER, "ray")
    assert [is_visible(shown, name) for name in ("partition", "address")] == [False, True]
    assert "All who reach the dashboard of Ray run programs" in str(shown["where_message"])


def test_address_at_which_nothing_answers_creates_no_run(
    handlers: Handlers, ray_address: str
) -> None:
    shown = handlers.runs.on_start(where="ray", place={"address": ray_address}, **demo())
    assert "Ray does not answer" in str(shown["start_message"])
    assert listing.list_runs(handlers.home) == ()


def test_address_that_is_none_is_refused(handlers: Handlers, ray_address: str) -> None:
    place = {"address": "file:///etc/passwd"}
    shown = handlers.runs.on_start(where="ray", place=place, **demo())
    assert "is no web address" in str(shown["start_message"])


@pytest.mark.parametrize("address", ["http://[::1", "http://127.0.0.1:99999", "http://x:port"])
def test_address_that_cannot_be_read_is_refused(handlers: Handlers, address: str) -> None:
    shown = handlers.runs.on_start(where="ray", place={"address": address}, **demo())
    assert "is no web address" in str(shown["start_message"])


def test_guests_are_offered_no_cluster_that_they_cannot_name(
    handlers: Handlers, slurm: FakeSlurm, ray_address: str
) -> None:
    with only_in(()):
        assert offered(handlers.placing.on_look_for_clusters()) == ["here", "slurm"]


def test_guests_cannot_let_the_server_speak_to_an_address(
    handlers: Handlers, ray_address: str
) -> None:
    with only_in(()), pytest.raises(SpecError, match="those who came in by the token cannot"):
        placement_of("ray", {"address": ray_address})


def test_box_of_another_cluster_says_nothing(handlers: Handlers, slurm: FakeSlurm) -> None:
    assert placement_of("slurm", {"address": "http://ray:8265"}) == Placement("slurm")


def test_this_machine_has_no_settings_of_a_cluster(handlers: Handlers, slurm: FakeSlurm) -> None:
    handlers.placing.on_look_for_clusters()
    assert not is_visible(handlers.placing.on_where(NO_ANSWER, "here"), "cluster_settings")


def test_command_says_where_the_run_trains(handlers: Handlers) -> None:
    answer = Answer(values=demo())
    boxes = {"partition": "gpu long", "time_limit": "12:00:00", "nodes": 2}
    said = handlers.placing.on_box(answer, "slurm", **boxes)["command"]
    start = "python app.py train --demo --on slurm --partition 'gpu long' --time 12:00:00 --nodes 2"
    assert str(said).startswith(start)


def test_command_of_this_machine_says_no_place(handlers: Handlers) -> None:
    said = handlers.placing.on_box(Answer(values=demo()), "here", nodes=2)["command"]
    assert "--on" not in str(said)


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


def test_run_that_its_cluster_has_just_started_says_where(
    handlers: Handlers, slurm: FakeSlurm
) -> None:
    slurm.says("squeue", "7|RUNNING|None|0|\n")
    shown = handlers.runs.on_start(**CHOSEN, **demo())
    queue.advance(handlers.home)
    shown = handlers.runs.on_view(run_id=str(shown["run_id"]))
    assert "Starting the training program on Slurm job 7." in str(shown["run_header"])


def test_cluster_does_not_make_runs_of_this_machine_wait(
    handlers: Handlers, slurm: FakeSlurm
) -> None:
    slurm.says("squeue", "7|RUNNING|None|0|\n")
    shown = handlers.runs.on_start(**CHOSEN, **demo())
    assert shown["start"]["value"] == "Start training"


@pytest.mark.parametrize(
    ("boxes", "said"),
    [
        ({"time_limit": "soon"}, "Time limit: "),
        ({"partition": "a\nb"}, "Partition: "),
        ({"nodes": 0}, "Nodes: "),
    ],
)
def test_box_that_a_cluster_would_not_understand_creates_no_run(
    handlers: Handlers, slurm: FakeSlurm, boxes: dict[str, Any], said: str
) -> None:
    shown = handlers.runs.on_start(where="slurm", place={**BOXES, **boxes}, **demo())
    assert said in str(shown["start_message"])
    assert listing.list_runs(handlers.home) == ()


def test_place_that_is_none_creates_no_run(handlers: Handlers) -> None:
    shown = handlers.runs.on_start(where="mars", **demo())
    assert "no engine" in str(shown["start_message"])
    assert listing.list_runs(handlers.home) == ()


@pytest.mark.parametrize("event", ["on_start", "on_compare"])
def test_boxes_of_a_place_reach_an_event_together(handlers: Handlers, event: str) -> None:
    handler = getattr(handlers.runs, event, None) or getattr(handlers.comparing, event)
    taken = inspect.signature(handler).parameters.keys()
    assert taken & {*PLACE_BOXES, "place"} == {"place"}


@pytest.fixture
def four_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    show_cards(monkeypatch, *map(reading, range(4)))


def ticked(shown: Updates) -> list[str]:
    update: Any = shown["cards"]
    return list(update["value"])


def test_the_ticks_are_the_cards_of_the_job(handlers: Handlers, four_cards: None) -> None:
    shown = FormPage(handlers).edit(device=3, num_devices=2)
    assert ticked(shown) == ["3", "0"]


def test_ticks_change_the_job(handlers: Handlers, four_cards: None) -> None:
    shown = handlers.placing.on_cards(["2", "3"], NO_ANSWER, "here")
    assert (shown["device"], shown["num_devices"]) == (2, 2)


@pytest.mark.parametrize("cards", [[], ["7"], ["-1"], ["0", "2"]])
def test_ticks_that_no_job_can_name_go_back(
    handlers: Handlers, four_cards: None, cards: list[str]
) -> None:
    shown = handlers.placing.on_cards(cards, NO_ANSWER, "here")
    assert ticked(shown) == ["0"]
    assert "num_devices" not in shown


def test_cards_of_this_machine_are_hidden_where_a_cluster_trains(
    handlers: Handlers, four_cards: None
) -> None:
    assert not is_visible(handlers.placing.on_where(NO_ANSWER, "ray"), "cards")


def test_one_card_needs_no_ticks(handlers: Handlers) -> None:
    assert "cards" not in FormPage(handlers).edit(seed=7)
