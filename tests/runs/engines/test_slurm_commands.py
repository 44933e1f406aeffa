"""Test what is said to Slurm and how its answers are read, with commands that do nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from core.job import SpecError
from core.runs.engines import ENGINES, ClusterSilent, ClusterState, Placement, Submission
from core.runs.engines.script import renew_token
from tests.builders.fake_slurm import FakeSlurm, put_on_path

SLURM = ENGINES["slurm"]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    return put_on_path(tmp_path / "commands", monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a run folder whose name has a space and a quote before it."""
    folder = tmp_path / "it's a home" / "run-1"
    folder.mkdir(parents=True)
    return folder


def script_of(folder: Path, placement: Placement, num_devices: int = 1) -> str:
    """Return the submit.sh of a run that is sent."""
    SLURM.submit(folder, placement, num_devices)
    return (folder / "submit.sh").read_text()


def state_of(folder: Path, slurm: FakeSlurm, row: str) -> ClusterState:
    """Return the state that a row of squeue means."""
    slurm.says("squeue", f"{row}\n")
    asked = Submission(folder, Placement("slurm"), "7")
    return SLURM.ask([asked])[folder.name]


def test_submitting_returns_the_id_of_the_job(slurm: FakeSlurm, folder: Path) -> None:
    slurm.says("sbatch", "123;cluster\n")
    assert SLURM.submit(folder, Placement("slurm"), 1) == "123"


def test_script_asks_for_what_the_user_chose(slurm: FakeSlurm, folder: Path) -> None:
    placement = Placement("slurm", 1, "long", "mine", "2:00:00", "gpu:a100:2")
    script = script_of(folder, placement)
    for option in ("partition=long", "account=mine", "time=2:00:00", "gres=gpu:a100:2"):
        assert f"#SBATCH --{option}\n" in script


def test_script_is_requeued_and_appends_to_the_log(slurm: FakeSlurm, folder: Path) -> None:
    script = script_of(folder, Placement("slurm"))
    for option in ("requeue", "open-mode=append", "output=log.txt"):
        assert f"#SBATCH --{option}\n" in script


@pytest.mark.parametrize(("limit", "seconds"), [("", 300), ("2-00", 300), ("4", 60)])
def test_checkpoint_is_asked_for_before_the_limit(
    slurm: FakeSlurm, folder: Path, limit: str, seconds: int
) -> None:
    script = script_of(folder, Placement("slurm", time=limit))
    assert f"#SBATCH --signal=B:TERM@{seconds}\n" in script


def test_gpus_are_asked_for_where_the_partition_has_some(slurm: FakeSlurm, folder: Path) -> None:
    assert "#SBATCH --gres=gpu:2\n" in script_of(folder, Placement("slurm"), 2)


def test_no_gpu_is_asked_of_a_partition_without_one(slurm: FakeSlurm, folder: Path) -> None:
    assert "gres" not in script_of(folder, Placement("slurm", partition="cpu"))


@pytest.mark.parametrize(
    ("restarts", "words", "is_left"), [("", "", 1), ("1", "", 0), ("1", "{}", 1)]
)
def test_job_that_starts_again_forgets_the_signal_that_ended_it(
    slurm: FakeSlurm, folder: Path, restarts: str, words: str, is_left: int
) -> None:
    script = script_of(folder, Placement("slurm")).replace(sys.executable, "true")
    (folder / "submit.sh").write_text(script)
    (folder / "stop").write_text(words)
    environment = {"PATH": os.environ["PATH"], "SLURM_RESTART_COUNT": restarts}
    subprocess.run(["bash", "submit.sh"], cwd=folder, env=environment, check=True)
    assert (folder / "stop").exists() == is_left


def test_several_nodes_start_torchrun_on_each(slurm: FakeSlurm, folder: Path) -> None:
    script = script_of(folder, Placement("slurm", nodes=2), 4)
    assert '--nnodes="$SLURM_NNODES" --nproc-per-node=4' in script


def test_edited_script_is_kept(slurm: FakeSlurm, folder: Path) -> None:
    (folder / "submit.sh").write_text("#!/bin/bash\n# mine\n")
    assert "# mine" in script_of(folder, Placement("slurm"))


def test_refusal_of_sbatch_is_told_in_its_words(slurm: FakeSlurm, folder: Path) -> None:
    slurm.refuses("sbatch", "sbatch: error: invalid partition specified: nope\n")
    with pytest.raises(SpecError, match="partition: Slurm refuses it: invalid partition") as caught:
        SLURM.submit(folder, Placement("slurm", partition="nope"), 1)
    assert "runs resume run-1 --on slurm --partition nope" in str(caught.value)


@pytest.mark.parametrize(
    "said",
    [
        "Welcome 2 you\n7\n",
        "7;cluster\n",
        "7 \n",
        "Submitted batch job 7\n",
        "Submitted batch job 7 on cluster big\n\nYour quota is fine.\n",
        "7\nSubmitted batch job 7\n",
    ],
)
def test_id_is_found_among_other_lines(slurm: FakeSlurm, folder: Path, said: str) -> None:
    slurm.says("sbatch", said)
    assert SLURM.submit(folder, Placement("slurm"), 1) == "7"


@pytest.mark.parametrize(
    ("said", "quoted"),
    [
        ("", "nothing"),
        ("Submitted batch job\n", "Submitted batch job"),
        ("seven\n", "seven"),
        ("7 of 9\n", "7 of 9"),
        ("\u0667\n", "\u0667"),
        ("7\n8\n", "7; 8"),
    ],
)
def test_answer_without_one_id_is_quoted(
    slurm: FakeSlurm, folder: Path, said: str, quoted: str
) -> None:
    slurm.says("sbatch", said)
    with pytest.raises(SpecError, match=f"no job id, but printed: {quoted};.* not train") as caught:
        SLURM.submit(folder, Placement("slurm"), 1)
    assert "refuses" not in str(caught.value)


@pytest.mark.parametrize(("gres", "field"), [("", "num_devices"), ("gpu:33", "gres")])
def test_too_many_devices_are_blamed_on_what_the_user_gave(
    slurm: FakeSlurm, folder: Path, gres: str, field: str
) -> None:
    slurm.refuses("sbatch", "sbatch: error: Requested node configuration is not available\n")
    with pytest.raises(SpecError, match=f"^{field}: Slurm refuses it"):
        SLURM.submit(folder, Placement("slurm", nodes=2, gres=gres), 33)


def test_refusal_that_a_wrapper_prints_elsewhere_is_told(slurm: FakeSlurm, folder: Path) -> None:
    (slurm.folder / "sbatch").write_text("#!/bin/sh\necho 'no account'; exit 1\n")
    with pytest.raises(SpecError, match="Slurm refuses it: no account"):
        SLURM.submit(folder, Placement("slurm"), 1)


def test_command_that_cannot_be_run_is_a_refusal(
    slurm: FakeSlurm, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(slurm.folder))
    (slurm.folder / "sbatch").write_bytes(b"\x00\x01")
    with pytest.raises(SpecError, match="sbatch cannot be run: Exec format error"):
        SLURM.submit(folder, Placement("slurm"), 1)


def test_job_of_a_lost_answer_does_not_train(slurm: FakeSlurm, folder: Path) -> None:
    script = script_of(folder, Placement("slurm"))
    renew_token(folder)
    environment = {"PATH": os.environ["PATH"]}
    words = ["bash", "-c", script, "submit.sh"]
    assert subprocess.run(words, cwd=folder, env=environment, check=False).returncode == 72


def test_script_with_a_new_token_trains(slurm: FakeSlurm, folder: Path) -> None:
    script = script_of(folder, Placement("slurm")).replace(sys.executable, "true")
    (folder / "submit.sh").write_text(script)
    renew_token(folder)
    subprocess.run(["bash", "submit.sh"], cwd=folder, check=True)


@pytest.mark.parametrize("reason", ["PartitionConfig", "PartitionTimeLimit"])
def test_limit_of_the_partition_is_explained(slurm: FakeSlurm, folder: Path, reason: str) -> None:
    meaning = state_of(folder, slurm, f"7|PENDING|{reason}|0|").meaning
    assert meaning.startswith("the partition does not allow")


def test_waiting_job_has_a_reason_and_its_meaning(slurm: FakeSlurm, folder: Path) -> None:
    state = state_of(folder, slurm, "7|PENDING|Priority|0|")
    found = (state.stage, state.words, state.meaning)
    assert found == ("waiting", "PENDING (Priority)", "other jobs are before it")


@pytest.mark.parametrize("word", ["RUNNING", "COMPLETING", "SUSPENDED", "SOMETHING_NEW"])
def test_job_in_any_other_state_runs(slurm: FakeSlurm, folder: Path, word: str) -> None:
    assert state_of(folder, slurm, f"7|{word}|None|0|").stage == "running"


@pytest.mark.parametrize(
    ("word", "ending"),
    [("FAILED", "failed"), ("OUT_OF_MEMORY", "failed"), ("TIMEOUT", "interrupted")],
)
def test_ended_job_says_how_its_run_ended(
    slurm: FakeSlurm, folder: Path, word: str, ending: str
) -> None:
    assert state_of(folder, slurm, f"7|{word}|None|256|").ending == ending


@pytest.mark.parametrize("status", [72 << 8, 53])
def test_node_without_the_folder_is_named(slurm: FakeSlurm, folder: Path, status: int) -> None:
    state = state_of(folder, slurm, f"7|FAILED|NonZeroExitCode|{status}|")
    assert "does not see the run folder" in state.meaning


def test_job_that_squeue_forgot_is_looked_up_in_the_accounts(
    slurm: FakeSlurm, folder: Path
) -> None:
    slurm.refuses("squeue", "slurm_load_jobs error: Invalid job id specified\n")
    slurm.says("sacct", "7|CANCELLED by 1000|None|0:0\n")
    asked = Submission(folder, Placement("slurm"), "7")
    assert SLURM.ask([asked])["run-1"].word == "CANCELLED"


def test_job_that_nobody_knows_has_ended(slurm: FakeSlurm, folder: Path) -> None:
    slurm.refuses("squeue", "slurm_load_jobs error: Invalid job id specified\n")
    slurm.refuses("sacct", "Slurm accounting storage is disabled\n")
    asked = Submission(folder, Placement("slurm"), "7")
    assert SLURM.ask([asked])["run-1"].stage == "ended"


def test_cluster_that_does_not_answer_is_silent(slurm: FakeSlurm, folder: Path) -> None:
    slurm.refuses("squeue", "slurm_load_jobs error: Unable to contact slurm controller\n")
    with pytest.raises(ClusterSilent, match="Unable to contact"):
        SLURM.ask([Submission(folder, Placement("slurm"), "7")])


def test_partitions_that_are_up_are_found_the_usual_one_first(slurm: FakeSlurm) -> None:
    assert SLURM.look(Placement("slurm")).partitions == ("gpu", "cpu")


def test_partitions_are_named_once_and_as_a_form_may_send_them(slurm: FakeSlurm) -> None:
    slurm.says("sinfo", "gpu*|up|gpu:a100:4\ngpu*|up|gpu:v100:2\n$(id)|up|\n<b>|up|\n")
    assert SLURM.look(Placement("slurm")).partitions == ("gpu",)


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    path = tmp_path / "probe.txt"
    path.write_text("token\n")
    return path


def test_look_from_a_node_has_its_own_limits(slurm: FakeSlurm, probe: Path) -> None:
    SLURM.blind_nodes(Placement("slurm", partition="gpu"), probe)
    (asked,) = [line for line in slurm.asked if line.startswith("srun")]
    for part in ("--immediate=5", "--time=1", "--partition=gpu", f"cat {probe}"):
        assert part in asked


def test_node_that_does_not_print_the_file_is_blind(slurm: FakeSlurm, probe: Path) -> None:
    slurm.says("srun", "0: token\n1: node-2\n0: node-1\n")
    assert SLURM.blind_nodes(Placement("slurm", nodes=2), probe) == ["the node node-2"]


def test_busy_nodes_say_nothing(slurm: FakeSlurm, probe: Path) -> None:
    slurm.refuses("srun", "srun: error: Unable to allocate resources: Requested nodes are busy\n")
    assert not SLURM.blind_nodes(Placement("slurm"), probe)


def test_runs_of_one_job_are_its_tasks(slurm: FakeSlurm, folder: Path) -> None:
    slurm.says("sbatch", "123\n")
    other = folder.parent / "run-2"
    other.mkdir()
    path = folder.parent / "sweep.sh"
    assert SLURM.submit_array
    assert SLURM.submit_array([folder, other], Placement("slurm"), 1, path) == ["123_0", "123_1"]
    assert "#SBATCH --array=0-1\n" in path.read_text()
    assert (other / "submit.sh").exists()


def test_each_task_trains_the_run_of_its_number(slurm: FakeSlurm, folder: Path) -> None:
    other = folder.parent / "run-2"
    other.mkdir()
    path = folder.parent / "sweep.sh"
    assert SLURM.submit_array
    SLURM.submit_array([folder, other], Placement("slurm"), 1, path)
    for each in (folder, other):
        (each / "submit.sh").write_text("echo $PWD\n")
    environment = {"SLURM_ARRAY_TASK_ID": "1", "PATH": os.environ["PATH"]}
    subprocess.run(["bash", str(path)], env=environment, check=True)
    assert (other / "log.txt").read_text() == f"{other}\n"
    assert not (folder / "log.txt").exists()


def test_task_of_a_lost_answer_does_not_train(slurm: FakeSlurm, folder: Path) -> None:
    path = folder.parent / "sweep.sh"
    assert SLURM.submit_array
    SLURM.submit_array([folder], Placement("slurm"), 1, path)
    environment = {"SLURM_ARRAY_TASK_ID": "0", "PATH": os.environ["PATH"]}
    renew_token(folder)
    assert subprocess.run(["bash", str(path)], env=environment, check=False).returncode == 72


def test_waiting_task_is_cancelled_without_the_others(slurm: FakeSlurm, folder: Path) -> None:
    slurm.says("squeue", "7_1|PENDING|Priority|0|\n")
    SLURM.stop(Submission(folder, Placement("slurm"), "7_1"))
    assert "scancel 7_1" in slurm.asked
    assert not [line for line in slurm.asked if "state=PENDING" in line]


def test_running_task_is_not_cancelled(slurm: FakeSlurm, folder: Path) -> None:
    slurm.says("squeue", "7_1|RUNNING|None|0|\n")
    SLURM.stop(Submission(folder, Placement("slurm"), "7_1"))
    assert "scancel 7_1" not in slurm.asked
