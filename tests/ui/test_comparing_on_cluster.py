"""Test the comparison of the page where the form names a cluster."""

from contextlib import suppress
from typing import Any

import pytest

from core.after_training.compare import Comparison, conduct, optimizer, record
from core.after_training.compare.record import AT_ONCE_ON_A_CLUSTER
from core.job import SpecError
from core.runs.engines import Placement
from core.runs.listing import list_runs
from core.speed import RowStatistics
from tests.builders.fake_slurm import FakeSlurm
from ui.events import Updates
from ui.form import first_values
from ui.handlers import NO_ANSWER, Handlers
from ui.handlers.answer import answer_values

BOXES: dict[str, object] = {"partition": "gpu", "time_limit": "30", "nodes": 1}
RATES = "learning_rate = 1e-4..1e-2"
NEEDS_OPTUNA = pytest.mark.skipif(not optimizer.is_installed(), reason="needs Optuna")


def sent(
    handlers: Handlers,
    methods: tuple[str, ...] = ("lora", "qlora"),
    lines: str = "",
    tried: int = 0,
    where: str = "slurm",
    at_once: int | None = None,
    **boxes: object,
) -> Updates:
    """Press the button of the panel."""
    values = {**first_values("demo", "lora"), "model": "demo"}
    answer = answer_values(handlers.home, lambda resolved: RowStatistics(300, 100.0), values)
    sweep = {"sweep_methods": [*methods], "sweep_lines": lines, "sweep_tried": tried}
    place = {**BOXES, **boxes}
    return handlers.comparing.on_compare(
        answer, **sweep, sweep_seeds=1, sweep_at_once=at_once, where=where, place=place
    )


def kept(handlers: Handlers) -> Comparison:
    (found,) = record.list_comparisons(handlers.home)
    return found


def test_runs_are_tasks_of_one_job(handlers: Handlers, slurm: FakeSlurm) -> None:
    said = str(sent(handlers)["compare_message"])
    jobs = {run.submission.job_id for run in list_runs(handlers.home) if run.submission}
    assert jobs == {"7_0", "7_1"}
    assert "Sent to Slurm: 2 runs: the Runs tab shows them." in said


def test_record_says_where_and_how_to_ask_again(handlers: Handlers, slurm: FakeSlurm) -> None:
    sent(handlers)
    assert kept(handlers).placement == Placement("slurm", partition="gpu", time="30")
    assert kept(handlers).command.endswith("--on slurm --partition gpu --time 30")


@pytest.mark.parametrize(
    "varied", [{"lines": "num_devices = 1, 0"}, {"lines": "num_devices = 0..4", "tried": 2}]
)
def test_all_gpus_of_a_cluster_are_no_number(
    handlers: Handlers, slurm: FakeSlurm, varied: dict[str, Any]
) -> None:
    if varied.get("tried") and not optimizer.is_installed():
        pytest.skip("needs Optuna")
    said = str(sent(handlers, **varied)["compare_message"])
    assert "0 takes the GPUs of this machine, and the run trains on another" in said
    assert record.list_comparisons(handlers.home) == ()


@pytest.mark.parametrize(
    ("boxes", "said"),
    [
        ({"time_limit": "soon"}, "Time limit: "),
        ({"partition": "a\nb"}, "Partition: "),
        ({"nodes": 0}, "Nodes: "),
        ({"where": "mars"}, "no engine"),
        ({"where": "ray", "address": "file:///etc/passwd"}, "is no web address"),
        ({"where": "torchrun", "nodes": 2}, "cannot start the runs of a comparison"),
    ],
)
def test_place_that_cannot_be_begins_nothing(
    handlers: Handlers, slurm: FakeSlurm, boxes: dict[str, Any], said: str
) -> None:
    assert said in str(sent(handlers, **boxes)["compare_message"])
    assert list_runs(handlers.home) == ()
    assert record.list_comparisons(handlers.home) == ()


def test_cluster_that_refuses_the_job_is_quoted(handlers: Handlers, slurm: FakeSlurm) -> None:
    slurm.refuses("sbatch", "sbatch: error: invalid partition specified: gpu\n")
    said = str(sent(handlers)["compare_message"])
    assert "Not started. Partition: Slurm refuses it: invalid partition specified" in said


@NEEDS_OPTUNA
def test_search_has_the_usual_number_at_once(handlers: Handlers, slurm: FakeSlurm) -> None:
    said = str(sent(handlers, ("lora",), RATES, tried=9)["compare_message"])
    assert len(list_runs(handlers.home)) == AT_ONCE_ON_A_CLUSTER
    assert "Optuna chooses 5 more, with 4 runs at once." in said


@NEEDS_OPTUNA
def test_search_has_as_many_at_once_as_asked(handlers: Handlers, slurm: FakeSlurm) -> None:
    sent(handlers, ("lora",), RATES, tried=9, at_once=6)
    assert len(list_runs(handlers.home)) == 6
    assert "--optimize 9 --at-once 6" in kept(handlers).command


@NEEDS_OPTUNA
@pytest.mark.parametrize("at_once", [0, 101, -3])
def test_impossible_numbers_at_once_begin_nothing(
    handlers: Handlers, slurm: FakeSlurm, at_once: int
) -> None:
    said = str(sent(handlers, ("lora",), RATES, tried=9, at_once=at_once))
    assert "is not a number from 1 to 100" in said
    assert list_runs(handlers.home) == ()


def test_button_says_where_the_runs_go(handlers: Handlers, slurm: FakeSlurm) -> None:
    shown = handlers.placing.on_where(NO_ANSWER, "slurm")
    assert shown["compare_methods"] == "Send one run of each to Slurm"
    assert (
        handlers.placing.on_where(NO_ANSWER, "here")["compare_methods"] == "Queue one run of each"
    )


@NEEDS_OPTUNA
def test_search_does_not_spend_its_runs_on_a_cluster_that_refuses(
    handlers: Handlers, slurm: FakeSlurm
) -> None:
    slurm.refuses("sbatch", "sbatch: error: QOSMaxSubmitJobPerUserLimit\n")
    sent(handlers, ("lora",), RATES, tried=9, at_once=2)
    for _second in range(3):
        with suppress(SpecError):
            conduct.advance(handlers.home, kept(handlers))
    assert len(list_runs(handlers.home)) == 2
    assert "QOSMaxSubmitJobPerUserLimit" in kept(handlers).note
