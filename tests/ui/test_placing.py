"""Test the flags that say where a run trains, and what the terminal shows of a cluster."""

import json
import time
from typing import Any

import pytest

import app
from core.runs import Home, Run, queue
from core.runs.engines import ENGINES, Placement
from core.runs.engines.placement import TITLES
from core.runs.listing import list_runs
from core.training.contract.files import write_json
from tests.builders.fake_runs import NewRun
from tests.builders.fake_slurm import FakeSlurm
from ui.terminal.follow import start_and_follow
from ui.terminal.study_flags import StudyFlags
from ui.terminal.usage import PLACEMENT_FLAGS

Printed = pytest.CaptureFixture[str]


@pytest.fixture
def sent(slurm: FakeSlurm, home: Home, new_run: NewRun) -> Run:
    """Return a run that was resumed on the cluster, without following it."""
    run = new_run()
    words = ["--on", "slurm", "--time", "30", "--detach", "--home", str(home.path)]
    assert app.main(["runs", "resume", run.id, *words]) == 0
    return list_runs(home)[0]


def test_flags_are_the_fields_of_a_placement() -> None:
    assert set(PLACEMENT_FLAGS) == {"on", *Placement.__dataclass_fields__} - {"engine"}


def test_every_engine_has_a_title_and_stands_in_the_help() -> None:
    assert set(ENGINES) == set(TITLES)
    assert all(name in PLACEMENT_FLAGS["on"][1] for name in ENGINES)


def test_detached_run_is_on_the_cluster(sent: Run) -> None:
    assert sent.submission
    assert (sent.submission.job_id, sent.submission.placement.time) == ("7", "30")


@pytest.mark.parametrize(("seconds", "is_said"), [(0.5, True), (0.0, False)])
def test_a_cluster_that_takes_long_is_told(
    slurm: FakeSlurm,
    home: Home,
    new_run: NewRun,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Printed,
    seconds: float,
    is_said: bool,
) -> None:
    def submit_slowly(*words: Any, **named: Any) -> Run:
        time.sleep(seconds)
        return queue.submit(*words, **named)

    monkeypatch.setattr("ui.terminal.follow.SECONDS_BEFORE_WORDS", 0.1 if is_said else 60)
    placement = Placement("slurm")
    start_and_follow(home, new_run(), placement, detach=True, start=submit_slowly)
    said = "Still sending it to Slurm, which has not taken it yet.\n"
    assert capsys.readouterr().err == (said if is_said else "")


def test_list_shows_state_and_reason_of_the_cluster(sent: Run, home: Home, capsys: Printed) -> None:
    app.main(["runs", "list", "--home", str(home.path)])
    assert "Slurm job 7: PENDING (Priority), other jobs are before it" in capsys.readouterr().out


def test_queue_shows_the_jobs_of_clusters(sent: Run, home: Home, capsys: Printed) -> None:
    app.main(["runs", "queue", "--home", str(home.path)])
    printed = " ".join(capsys.readouterr().out.split())
    assert "Slurm job 7: PENDING (Priority), other jobs are before it" in printed


def test_json_has_the_job(sent: Run, home: Home, capsys: Printed) -> None:
    capsys.readouterr()
    app.main(["runs", "list", "--json", "--home", str(home.path)])
    (printed,) = json.loads(capsys.readouterr().out)
    assert printed["cluster"]["state"]["word"] == "PENDING"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--on", "mars"], "on: 'mars' is no engine; choose here, slurm, ray, torchrun"),
        (["--partition", "gpu"], "on: is missing: --partition says nothing without it"),
        (["--on", "slurm", "--time", "soon"], "time: 'soon' is not what a cluster calls one"),
        (["--on", "slurm", "--address", "x"], "address: Slurm has no use for it"),
        (["--on", "here", "--nodes", "2"], "nodes: a run of this machine has no use for it"),
        (["--on", "torchrun"], "on: one machine needs no lines by hand"),
        (["--detach"], "detach: a run of this machine waits for its turn only while"),
    ],
)
def test_flags_that_say_nothing_are_refused_before_the_start(
    slurm: FakeSlurm, home: Home, new_run: NewRun, capsys: Printed, words: list[str], said: str
) -> None:
    run = new_run()
    code = app.main(["runs", "resume", run.id, *words, "--home", str(home.path)])
    assert (code, said in capsys.readouterr().err) == (2, True)


def test_training_on_a_cluster_that_is_not_there_creates_no_run(
    home: Home, capsys: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    words = ["--on", "slurm", "--home", str(home.path)]
    assert app.main(["train", "--demo", *words]) == 2
    assert "this machine has no sbatch; log in to a machine of the cluster" in (
        capsys.readouterr().err
    )
    assert list_runs(home) == ()


@pytest.mark.parametrize("command", ["train", "resume", "compare"])
def test_refused_command_prints_nothing_on_standard_output(
    slurm: FakeSlurm, home: Home, new_run: NewRun, capsys: Printed, command: str
) -> None:
    slurm.refuses("sbatch", "sbatch: error: Invalid account\n")
    slurm.says("srun", "" if command == "resume" else "0: node-7\n")
    words = {"train": ["train", "--demo"], "compare": ["compare", "--demo", "--methods", "lora"]}
    words["resume"] = ["runs", "resume", new_run().id]
    assert app.main([*words[command], "--on", "slurm", "--home", str(home.path)]) == 2
    assert capsys.readouterr().out == ""


def test_other_actions_do_not_take_a_place(home: Home, capsys: Printed) -> None:
    assert app.main(["runs", "list", "--on", "slurm", "--home", str(home.path)]) == 2
    assert "list does not start a run" in capsys.readouterr().err


def test_lines_for_several_machines_are_printed(
    home: Home, new_run: NewRun, capsys: Printed
) -> None:
    run = new_run()
    words = ["--on", "torchrun", "--nodes", "2", "--address", "first", "--detach"]
    app.main(["runs", "resume", run.id, *words, "--home", str(home.path)])
    printed = capsys.readouterr().out
    assert "Type this on first and on 1 more" in printed
    assert "--rdzv-endpoint=first:29500" in printed
    assert queue.ask_clusters(home)[0].state == "queued"


def test_comparison_by_hand_is_refused(home: Home, capsys: Printed) -> None:
    words = ["--on", "torchrun", "--nodes", "2", "--methods", "lora", "--home", str(home.path)]
    assert app.main(["compare", "--demo", *words]) == 2
    assert "cannot start the runs of a comparison" in capsys.readouterr().err


def test_comparison_is_refused_before_its_runs_are_created(
    slurm: FakeSlurm, home: Home, capsys: Printed
) -> None:
    slurm.says("srun", "0: node-7\n")
    words = ["--on", "slurm", "--methods", "lora", "--home", str(home.path)]
    assert app.main(["compare", "--demo", *words]) == 2
    assert "the node node-7 does not see" in capsys.readouterr().err
    assert list_runs(home) == ()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--axis", "num_devices=1,0"], "num_devices: 0 takes the GPUs of this machine"),
        (["--num-devices", "0"], "num_devices: 0 takes the GPUs of this machine"),
        (["--axis", "num_devices=1,4", "--gres", "gpu:2"], "gpu:2 has too few GPUs"),
    ],
)
def test_comparison_of_numbers_that_no_node_has_is_refused(
    slurm: FakeSlurm, home: Home, capsys: Printed, words: list[str], said: str
) -> None:
    place = ["--on", "slurm", "--methods", "lora", "--home", str(home.path)]
    assert app.main(["compare", "--demo", *words, *place]) == 2
    assert said in capsys.readouterr().err
    assert list_runs(home) == ()


@pytest.mark.parametrize("number", ["0", "+0", "0.0"])
def test_training_on_all_gpus_of_a_cluster_is_refused(
    slurm: FakeSlurm, home: Home, capsys: Printed, number: str
) -> None:
    words = ["--num-devices", number, "--on", "slurm", "--home", str(home.path)]
    assert app.main(["train", "--demo", *words]) == 2
    assert "num_devices: 0 takes the GPUs of this machine" in capsys.readouterr().err
    assert list_runs(home) == ()


@pytest.mark.parametrize("number", ["0", "+0"])
def test_resuming_on_all_gpus_of_a_cluster_is_refused(
    slurm: FakeSlurm, home: Home, new_run: NewRun, capsys: Printed, number: str
) -> None:
    run = new_run()
    write_json(run.folder / "status.json", {"state": "stopped"})
    words = [run.id, "--num-devices", number, "--on", "slurm", "--home", str(home.path)]
    assert app.main(["runs", "resume", *words]) == 2
    assert "num_devices: 0 cannot continue this run" in capsys.readouterr().err


def test_command_of_a_comparison_says_where_it_trains() -> None:
    asked = StudyFlags(demo=True, place={"on": "slurm", "partition": "gpu"})
    assert asked.command() == "python app.py compare --demo --on slurm --partition gpu"
