"""Comparisons whose runs go to a cluster, with commands of Slurm that do nothing."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from core.after_training.compare import Comparison, Study, conduct, keeper, plan_variants, record
from core.after_training.compare.on_cluster import was_never_sent
from core.job import Problem, SpecError
from core.models import demo_fields
from core.runs import Home, queue
from core.runs.engines import ENGINES, Placement
from tests.builders.fake_slurm import FakeSlurm, hanging, put_on_path

SLURM = Placement("slurm", partition="gpu")
RATES = ("1e-3", "2e-3", "3e-3")


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    monkeypatch.setattr("core.runs.clusters.SECONDS_BETWEEN_QUESTIONS", 0)
    return put_on_path(tmp_path / "commands", monkeypatch)


def sweep(home: Home, rates: Sequence[str] = RATES) -> Comparison:
    """Keep a comparison of learning rates for the cluster."""
    found = plan_variants(Study.parse(demo_fields(), ["lora"], {"learning_rate": list(rates)}))
    return record.new_comparison(home, found, "Which?", "compare", placement=SLURM)


def num_submitted(slurm: FakeSlurm) -> int:
    return len([line for line in slurm.asked if line.startswith("sbatch")])


def test_runs_are_tasks_of_one_job(slurm: FakeSlurm, home: Home) -> None:
    started = conduct.start(home, sweep(home))
    submissions = [run.submission for run in record.runs_of(home, started)]
    assert [each and each.job_id for each in submissions] == ["7_0", "7_1", "7_2"]
    assert num_submitted(slurm) == 1


def test_each_run_keeps_where_it_trains(slurm: FakeSlurm, home: Home) -> None:
    started = conduct.start(home, sweep(home))
    submissions = [run.submission for run in record.runs_of(home, started)]
    assert [each and each.placement for each in submissions] == [SLURM] * 3


def test_single_run_is_a_job_of_its_own(slurm: FakeSlurm, home: Home) -> None:
    started = conduct.start(home, sweep(home, ["1e-3"]))
    (run,) = record.runs_of(home, started)
    assert run.submission
    assert run.submission.job_id == "7"


def test_nothing_is_sent_twice(slurm: FakeSlurm, home: Home) -> None:
    started = conduct.start(home, sweep(home))
    conduct.advance(home, conduct.advance(home, started))
    assert num_submitted(slurm) == 1


def test_runs_that_the_cluster_refuses_fail_and_stay_so(slurm: FakeSlurm, home: Home) -> None:
    slurm.refuses("sbatch", "sbatch: error: invalid partition specified: gpu\n")
    comparison = sweep(home)
    with pytest.raises(SpecError, match="Slurm refuses it: invalid partition"):
        conduct.start(home, comparison)
    closed = conduct.advance(home, conduct.advance(home, comparison))
    assert {run.state for run in record.runs_of(home, closed)} == {"failed"}
    assert num_submitted(slurm) == 1


def test_runs_that_the_cluster_refused_are_sent_by_resume(slurm: FakeSlurm, home: Home) -> None:
    slurm.refuses("sbatch", "sbatch: error: Invalid account\n")
    comparison = sweep(home)
    with pytest.raises(SpecError, match=f"compare --resume {comparison.id}"):
        conduct.start(home, comparison)
    (slurm.folder / "sbatch.error").unlink()
    again = conduct.start(home, comparison)
    submissions = [run.submission for run in record.runs_of(home, again)]
    assert [each and each.job_id for each in submissions] == ["7_0", "7_1", "7_2"]


@pytest.fixture
def half_sent(slurm: FakeSlurm, home: Home) -> Comparison:
    """Return a comparison of three jobs, of which the cluster has refused the second."""
    real = ENGINES["slurm"].submit
    comparison = sweep(home)

    def refuse_second(folder: Path, placement: Placement, num_devices: int) -> str:
        if slurm.was_asked("sbatch"):
            raise SpecError(Problem("account", "Slurm refuses it: no room", "ask for less"))
        return real(folder, placement, num_devices)

    engine = replace(ENGINES["slurm"], submit=refuse_second, submit_array=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("core.runs.sending.engine_of", lambda _placement: engine)
        said = (
            r"account: 1 of 3 was sent \(Slurm job 7\) and continues; 2 were not: "
            f"Slurm refuses it: no room; .* --resume {comparison.id}"
        )
        with pytest.raises(SpecError, match=said):
            conduct.start(home, comparison)
    return record.read_comparison(home, comparison.id)


def test_run_that_was_not_asked_for_is_no_failure(home: Home, half_sent: Comparison) -> None:
    first, second, third = record.runs_of(home, half_sent)
    assert (first.state, second.state) == ("queued", "failed")
    assert was_never_sent(third)


def test_half_sent_comparison_goes_on_by_resume(
    slurm: FakeSlurm, home: Home, half_sent: Comparison
) -> None:
    slurm.says("sbatch", "8\n")
    again = conduct.start(home, half_sent)
    submissions = [run.submission for run in record.runs_of(home, again)]
    assert [each and each.job_id for each in submissions] == ["7", "8_0", "8_1"]


def test_runs_that_were_stopped_together_go_on_together(slurm: FakeSlurm, home: Home) -> None:
    started = conduct.start(home, sweep(home))
    slurm.says("squeue", "")
    stopped = conduct.stop(home, started)
    queue.advance(home)
    assert {run.state for run in record.runs_of(home, stopped)} == {"stopped"}
    slurm.says("sbatch", "8\n")
    again = conduct.start(home, stopped)
    submissions = [run.submission for run in record.runs_of(home, again)]
    assert [each and each.job_id for each in submissions] == ["8_0", "8_1", "8_2"]


def test_comparisons_are_not_locked_while_runs_are_sent(slurm: FakeSlurm, home: Home) -> None:
    comparison = sweep(home)
    with hanging(slurm, "sbatch", lambda: conduct.start(home, comparison)):
        with record.locked(home, seconds=0):
            pass
        conduct.advance(home, comparison)  # as the page does every two seconds
    assert num_submitted(slurm) == 1


def test_comparison_that_goes_on_stays_open_while_its_runs_are_sent(
    slurm: FakeSlurm, home: Home
) -> None:
    stopped = conduct.stop(home, conduct.start(home, sweep(home)))
    slurm.says("squeue", "")
    queue.advance(home)
    page = keeper.Keeper(home)
    with hanging(slurm, "sbatch", lambda: conduct.start(home, stopped)):
        page.advance()
    assert record.read_comparison(home, stopped.id).is_open
    assert {run.state for run in record.runs_of(home, stopped)} == {"queued"}


def test_comparisons_are_not_locked_while_runs_are_stopped(slurm: FakeSlurm, home: Home) -> None:
    started = conduct.start(home, sweep(home))
    slurm.says("squeue", "7_0|PENDING|Priority|0|\n")
    with (
        hanging(slurm, "scancel", lambda: conduct.stop(home, started)),
        record.locked(home, seconds=0),
    ):
        pass


@pytest.mark.parametrize("command", ["srun", "sbatch"])
def test_comparison_that_is_stopped_while_its_runs_are_sent_stops_them(
    slurm: FakeSlurm, home: Home, command: str
) -> None:
    comparison = sweep(home)
    slurm.says("squeue", "7_0|PENDING|None|0|\n7_1|PENDING|None|0|\n7_2|PENDING|None|0|\n")
    with hanging(slurm, command, lambda: conduct.start(home, comparison)):
        conduct.stop(home, comparison)
    assert {line for line in slurm.asked if "scancel 7" in line} == {
        "scancel 7_0",
        "scancel 7_1",
        "scancel 7_2",
    }


def test_record_without_a_place_is_of_this_machine(slurm: FakeSlurm, home: Home) -> None:
    found = plan_variants(Study.parse(demo_fields(), ["lora"]))
    comparison = record.new_comparison(home, found, "Which?", "compare")
    assert record.read_comparison(home, comparison.id).placement.is_here
