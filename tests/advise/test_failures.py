"""Advice after a failure, by its cause: every advice is a sentence and a job that can run."""

import pytest

from core.advise import advice_after
from core.advise.failures import FAILURES
from core.job import JobSpec
from core.training.contract.failures import CAUSES
from tests.builders.advice_cases import job_of

ADVISED = ("diverged", "out_of_gpu_memory", *FAILURES)
"""Causes with advice."""
USUAL = job_of()
UNWISE = job_of(
    max_grad_norm=0,
    attn_implementation="eager",
    target_modules="q_proj",
    dtype="float16",
    optim="paged_adamw_8bit",
    halve_batch_on_oom=False,
    torch_compile=True,
    activation_offloading=True,
    use_liger_kernel=True,
)


@pytest.mark.parametrize("cause", ADVISED)
@pytest.mark.parametrize("job", [USUAL, UNWISE], ids=["usual", "unwise"])
def test_every_advice_is_a_title_and_a_sentence(cause: str, job: JobSpec) -> None:
    for each in advice_after(cause, job, supports_bf16=True):
        assert each.title
        assert each.why.endswith(".")


@pytest.mark.parametrize("cause", ADVISED)
@pytest.mark.parametrize("job", [USUAL, UNWISE], ids=["usual", "unwise"])
def test_every_change_makes_another_job_that_can_run(cause: str, job: JobSpec) -> None:
    for each in advice_after(cause, job, supports_bf16=True):
        changed = JobSpec.parse({**job.model_dump(), **each.change})
        assert changed != job or not each.change


@pytest.mark.parametrize("cause", ADVISED)
def test_an_unwise_job_gets_advice_for_every_cause(cause: str) -> None:
    assert advice_after(cause, UNWISE, supports_bf16=True)


@pytest.mark.parametrize(("supports_bf16", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_a_diverged_float16_job_gets_the_card_s_precision(supports_bf16: bool, dtype: str) -> None:
    changes = [dict(each.change) for each in advice_after("diverged", UNWISE, supports_bf16)]
    assert {"dtype": dtype} in changes


@pytest.mark.parametrize(("num_devices", "is_offered"), [(1, True), (2, False)])
def test_a_batch_is_halved_on_one_device_only(num_devices: int, is_offered: bool) -> None:
    job = job_of(halve_batch_on_oom=False, num_devices=num_devices)
    changes = [dict(each.change) for each in advice_after("out_of_gpu_memory", job, True)]
    assert ({"halve_batch_on_oom": True} in changes) == is_offered


def test_an_unknown_cause_gets_no_advice() -> None:
    assert advice_after("something new", USUAL, supports_bf16=True) == ()


RAISED = {
    "checkpoint_mismatch",
    "bad_row",
    "diverged",
    "disk_full",
    "signal",
    "out_of_memory",
    "stuck",
}
"""Causes that the code names itself, beside those recognised by their message."""


def test_every_cause_with_advice_occurs() -> None:
    assert set(ADVISED) <= {cause.id for cause in CAUSES} | RAISED
