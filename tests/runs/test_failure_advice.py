"""What helps a failed run, and when one stands still."""

import pytest

from core import runs
from core.job import JobSpec
from core.resolve import resolve
from core.runs import Run, failure_advice
from core.training.contract.status import Status
from tests.builders.fake_runs import NewRun

GPU = {"model": "meta-llama/Llama-3.1-8B", "gpu": "rtx-4090", "method": "lora"}
"""A job for a card, asked of a machine that may have none."""


@pytest.fixture
def failed(new_run: NewRun):
    """Makes a run that failed for a cause: failed("diverged", dtype="float16")."""

    def make(cause: str, **fields: object) -> Run:
        run = new_run(**fields)
        runs.write_json(
            run.folder / "status.json", {"state": "failed", "error": "…", "cause": cause}
        )
        return runs.read(run.home, run.id)

    return make


@pytest.mark.parametrize("cause", failure_advice.CURES)
def test_every_change_makes_a_job_that_can_run(failed, cause: str) -> None:
    unwise = {
        "max_grad_norm": 0,
        "attn_implementation": "eager",
        "target_modules": "q_proj",
        "dtype": "float16",
    }
    for run in (
        failed(cause),
        failed(cause, **GPU, **unwise, optim="paged_adamw_8bit", halve_batch_on_oom=False),
    ):
        for each in failure_advice.advice_for(run):
            assert each.title
            assert each.why.endswith(".")
            job = JobSpec.parse(runs.fields_again(run) | dict(each.change))
            assert job != JobSpec.parse(runs.fields_again(run)) or not each.change


def test_out_of_gpu_memory_is_met_with_a_job_that_takes_less_than_predicted(failed) -> None:
    run = failed("out_of_gpu_memory", **GPU, per_device_train_batch_size=2)
    before = resolve(runs.fields_again(run)).estimate()
    assert before.verdict == "fits"  # so it was thought
    best = failure_advice.advice_for(run)[0]
    assert best.change == {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 16}
    assert (
        resolve(runs.fields_again(run) | dict(best.change)).estimate().total_bytes
        < before.total_bytes
    )


def test_a_diverged_run_learns_slower(failed) -> None:
    run = failed("diverged", learning_rate=3e-4, dtype="float16", gpu="rtx-4090")
    titles = {each.title: dict(each.change) for each in failure_advice.advice_for(run)}
    assert titles["Learning rate 6e-05"] == {"learning_rate": 6e-5}
    assert titles["Compute in bfloat16"] == {"dtype": "bfloat16"}


def test_a_full_disk_is_met_with_the_trash_first(failed) -> None:
    other, run = failed("signal"), failed("disk_full")
    runs.delete(other.home, other.id)
    assert [each.title for each in failure_advice.advice_for(run)][:2] == [
        "Empty the trash",
        "Keep one checkpoint",
    ]


def test_a_run_that_did_not_fail_needs_nothing(new_run: NewRun, failed) -> None:
    assert (
        failure_advice.advice_for(new_run())
        == ()
        == failure_advice.advice_for(failed("something new"))
    )


@pytest.mark.parametrize(
    ("silence", "says"),
    [(5, None), (100, None), (240, "No step for 4 min; a step took 12 s."), (-500, None)],
)
def test_a_run_that_stands_still_is_told_from_a_slow_one(
    failed, silence: float, says: str | None
) -> None:
    run = failed("")
    status = Status(
        phase="train", step=7, last_step_time=1000.0, seconds_per_step=12.0, updated=1000.0
    )
    running = runs.Run(run.id, run.folder, run.job, "running", "", 0.0, status)
    assert failure_advice.stall_warning(running, now=1000.0 + silence) == says


def test_silence_before_the_first_step_is_borne_longer(failed) -> None:
    run = failed("")
    status = Status(phase="load", updated=1000.0)
    running = runs.Run(run.id, run.folder, run.job, "running", "", 0.0, status)
    assert failure_advice.stall_warning(running, now=1300.0) is None
    assert failure_advice.stall_warning(running, now=1900.0) == "Nothing new for 15 min."
    assert failure_advice.stall_warning(run) is None
