"""Test the job of the training program: it has JobSpec's fields, and reads older job files."""

from dataclasses import MISSING, fields

import pytest

from core.job import JobSpec
from core.training.contract.failures import UnusableJob
from core.training.contract.job import IN_EARLIER_RUNS, Job
from core.training.contract.stages import defaults_of
from core.training.contract.typed_json import types_of

PLACES = {"model": "m", "dataset": "d"}
"""Fields without a default."""


def test_its_fields_are_those_of_a_job_spec_in_name_and_type() -> None:
    expected = {name: field.annotation for name, field in JobSpec.model_fields.items()}
    assert types_of(Job) == expected


def test_its_defaults_are_those_of_a_job_spec() -> None:
    defaults = {each.name: each.default for each in fields(Job) if each.default is not MISSING}
    expected = {name: field.default for name, field in JobSpec.model_fields.items()}
    assert defaults == {name: expected[name] for name in expected if name not in PLACES}


@pytest.mark.parametrize("chosen", [{}, {"stage": "dpo"}, {"method": "full", "seed": 7}])
def test_the_job_file_of_a_spec_is_read_as_it_was_meant(chosen: dict[str, object]) -> None:
    spec = JobSpec.parse(PLACES | chosen)
    assert vars(Job.from_json(spec.model_dump())) == spec.model_dump()


@pytest.mark.parametrize("name", sorted(set(types_of(Job)) - set(PLACES)))
def test_a_job_file_that_lacks_a_later_field_takes_its_default(name: str) -> None:
    given = JobSpec.parse(PLACES).model_dump()
    del given[name]
    assert vars(Job.from_json(given)) == JobSpec.parse({**IN_EARLIER_RUNS, **given}).model_dump()


def test_a_job_file_of_an_earlier_version_leaves_texts_as_they_are() -> None:
    assert not Job.from_json(PLACES).use_chat_template
    assert Job(**PLACES).use_chat_template


def test_a_missing_field_takes_the_default_of_its_stage_and_method() -> None:
    job = Job.from_json({**PLACES, "stage": "dpo", "method": "full"})
    assert job.learning_rate == defaults_of("dpo", "full")["learning_rate"]


@pytest.mark.parametrize("name", sorted(PLACES))
def test_a_job_file_without_its_model_or_data_is_refused(name: str) -> None:
    with pytest.raises(UnusableJob, match=f"field {name} is missing"):
        Job.from_json({other: "a" for other in PLACES if other != name})


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"lora_r": "many"}, "field lora_r is 'many', which is not of type int"),
        ({"packing": 1}, "field packing is 1, which is not of type bool"),
        ({"learning_rate": None}, "field learning_rate is None, which is not of type float"),
        ({"dtype": "int4"}, "field dtype is 'int4', which is not one of auto, bfloat16"),
        ({"stage": "ppo"}, "stage 'ppo' is not one of sft, cpt"),
        ({"stage": []}, "is not one of sft, cpt"),
        ({"method": "lorra"}, "method 'lorra' is not one of full, freeze"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(field: dict[str, object], message: str) -> None:
    with pytest.raises(UnusableJob) as error:
        Job.from_json({**PLACES, **field})
    assert message in str(error.value)


def test_unknown_fields_are_ignored() -> None:
    job = Job.from_json({**PLACES, "from_the_future": 1})
    assert job == Job(**PLACES, use_chat_template=False)


def test_unknown_and_missing_fields_are_named() -> None:
    given = JobSpec.parse(PLACES).model_dump() | {"from_the_future": 1}
    del given["seed"]
    assert Job.differences(given) == (
        "Not in job.json, so the defaults are used: seed.",
        "Unknown in job.json, so ignored: from_the_future.",
    )


def test_a_job_file_of_this_version_has_no_differences() -> None:
    assert Job.differences(JobSpec.parse(PLACES).model_dump()) == ()


def test_a_number_of_devices_below_0_is_refused():
    with pytest.raises(UnusableJob, match="num_devices is below 0"):
        Job.from_json({"model": "m", "dataset": "d", "num_devices": -1})
