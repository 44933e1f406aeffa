"""Jobs that a trace check covers, and fields of a job that it reads."""

from itertools import product
from typing import Any

import pytest

from core.job import JobSpec
from core.memory.program import program_of
from core.memory.trace_check import (
    FIELDS,
    FIELDS_WITHOUT_MEMORY,
    UNSUPPORTED,
    TraceRequest,
    uncompiled,
)
from core.training.contract.methods import METHODS
from core.training.contract.stages import STAGES
from tests.builders.estimates import GPU, LLAMA, stage_job

REFUSED = {
    "use_liger_kernel",
    "reward_model",
    "activation_offloading",
    "neftune_noise_alpha",
    "label_smoothing_factor",
}
"""Fields whose every value but the default is refused."""
RESET = {"torch_compile", "activation_memory_budget"}
"""Fields that are reset for a trace."""
SENT_AS_ROWS = {"eval_dataset", "eval_fraction", "num_generations"}
"""Fields of which a trace is sent only what they decide: the rows of an evaluation."""


class ReadFields:
    """Job that remembers which of its fields were read."""

    def __init__(self, job: JobSpec) -> None:
        self.job = job
        self.names: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        value = getattr(type(self.job), name, None)
        if isinstance(value, property) and value.fget:
            return value.fget(self)
        self.names.add(name)
        return getattr(self.job, name)


def fields_that_decide_memory() -> set[str]:
    """Return the fields that the estimate of any job reads."""
    names: set[str] = set()
    for stage, method, packing in product(STAGES, METHODS, (True, False)):
        packs = packing and STAGES[stage].supports_packing
        job = ReadFields(stage_job(stage, method, packing=packs, beta=0.1, torch_compile=True))
        program_of(job, LLAMA, GPU)  # type: ignore[arg-type]
        names |= job.names
    return names


def test_the_trace_reads_every_field_that_decides_memory() -> None:
    assert fields_that_decide_memory() - set(FIELDS) - REFUSED - RESET == SENT_AS_ROWS


def test_the_key_of_a_trace_holds_the_rows_of_an_evaluation() -> None:
    job = stage_job("kto", "lora", per_device_train_batch_size=4)
    jobs = [job.model_copy(update={"eval_fraction": share}) for share in (0.0, 0.1)]
    keys = {TraceRequest(each, {}, GPU).key for each in jobs}
    assert len(keys) == 2


def test_the_trace_reads_fields_of_a_job_only() -> None:
    assert set(FIELDS) <= set(JobSpec.model_fields)


def test_no_field_that_decides_memory_is_left_out_of_the_key() -> None:
    assert fields_that_decide_memory().isdisjoint(FIELDS_WITHOUT_MEMORY)


@pytest.mark.parametrize(
    "fields",
    [
        {"stage": "ppo"},
        {"use_liger_kernel": True},
        {"stage": "grpo", "reward_model": "judge"},
        {"activation_offloading": True},
        {"neftune_noise_alpha": 5},
        {"label_smoothing_factor": 0.1},
        {"method": "full", "optim": "galore_adamw"},
    ],
    ids=str,
)
def test_a_job_that_cannot_be_traced_has_a_reason(fields: dict[str, Any]) -> None:
    job = JobSpec.parse(fields)
    assert [each.why for each in UNSUPPORTED if each.applies(job)]


def test_a_usual_job_can_be_traced() -> None:
    assert not any(each.applies(JobSpec.parse({})) for each in UNSUPPORTED)


def test_a_compiled_job_is_traced_uncompiled() -> None:
    compiled = JobSpec.parse({"torch_compile": True, "activation_memory_budget": 0.5})
    assert uncompiled(compiled) == JobSpec.parse({})


def test_a_job_on_several_devices_is_traced_on_one_of_them() -> None:
    together = JobSpec.parse({"num_devices": 2, "parallelism": "fsdp"})
    assert uncompiled(together) == together
