"""Send a comparison of the page to a real Slurm, where its runs train as tasks of one job."""

import tempfile
from pathlib import Path

import pytest

from core.after_training.compare import record
from core.runs import Home
from core.runs.listing import list_runs
from core.speed import RowStatistics
from tests.builders.cluster_runs import has_ended, until
from tests.builders.page import demo
from tests.builders.slurm import running_slurm, why_not_here
from ui.handlers import Handlers
from ui.handlers.answer import answer_values

pytestmark = [
    pytest.mark.slow,
    pytest.mark.training,
    pytest.mark.skipif(bool(why_not_here()), reason=f"no Slurm: {why_not_here()}"),
]
NUM_STEPS = 4
BOXES = {"partition": "debug", "time_limit": "20"}


def test_methods_train_as_tasks_of_one_job(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    values = demo(max_steps=NUM_STEPS, num_samples=0, eval_fraction=0.0)
    answer = answer_values(home, lambda resolved: RowStatistics(300, 100.0), values)
    handlers = Handlers(home)
    with tempfile.TemporaryDirectory(prefix="slurm") as name, running_slurm(Path(name)) as slurm:
        for variable, value in slurm.environment.items():
            monkeypatch.setenv(variable, value)
        shown = handlers.comparing.on_compare(
            answer, ["lora", "full"], "", 1, 0, where="slurm", place=BOXES
        )
        assert "Sent to Slurm: 2 runs" in str(shown["compare_message"])
        ended = [until(home, run, has_ended) for run in list_runs(home)]
    handlers.close()
    assert {(run.state, run.step) for run in ended} == {("finished", NUM_STEPS)}
    jobs = {run.submission.job_id for run in ended if run.submission}
    assert {job.partition("_")[2] for job in jobs} == {"0", "1"}
    assert len({job.partition("_")[0] for job in jobs}) == 1
    (comparison,) = record.list_comparisons(home)
    assert comparison.command.endswith("--on slurm --partition debug --time 20")
