"""JobSpec: accepted values, and the messages for all others."""

import json
import math

import pytest

from core.job import JobSpec, SpecError
from core.training.contract.methods import METHODS


def problems(**fields: object) -> dict[str, str]:
    """{field: what is wrong; what to do} of values that are refused."""
    with pytest.raises(SpecError) as caught:
        JobSpec.parse(fields)
    return {problem.field: str(problem) for problem in caught.value.problems}


def test_without_fields_a_job_is_complete() -> None:
    job = JobSpec.parse({})
    assert (job.model, job.dataset, job.method, job.lora_r, job.lora_alpha) == (
        "demo",
        "demo",
        "lora",
        16,
        32,
    )
    assert job.effective_batch_size == 16


@pytest.mark.parametrize("method", METHODS)
def test_a_method_brings_its_own_defaults(method: str) -> None:
    job = JobSpec.parse({"method": method})
    assert {name: getattr(job, name) for name in METHODS[method].defaults} == dict(
        METHODS[method].defaults
    )


def test_full_fine_tuning_learns_slower_and_qlora_pages_its_optimizer() -> None:
    assert JobSpec.parse({"method": "full"}).learning_rate == 2e-5
    assert JobSpec.parse({"method": "lora"}).learning_rate == 2e-4
    assert JobSpec.parse({"method": "qlora"}).optim == "paged_adamw_8bit"


def test_a_value_set_by_the_user_wins_over_the_method() -> None:
    assert JobSpec.parse({"method": "full", "learning_rate": 1e-4}).learning_rate == 1e-4


def test_a_job_survives_its_file() -> None:
    job = JobSpec.parse(
        {"method": "qlora", "target_modules": ["q_proj", "v_proj"], "packing": True}
    )
    assert JobSpec.from_json(job.to_json()) == job
    assert job.target_modules == "q_proj,v_proj"


def test_text_from_a_command_line_is_read() -> None:
    job = JobSpec.parse({"lora_r": "8", "packing": "true", "learning_rate": "3e-4"})
    assert (job.lora_r, job.packing, job.learning_rate) == (8, True, 3e-4)


def test_every_problem_is_reported_at_once() -> None:
    found = problems(lora_r=-1, learning_rate=math.nan, method="magic", colour="blue")
    assert set(found) == {"lora_r", "learning_rate", "method", "colour"}


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("learning_rate", "nan", "not a finite number"),
        ("learning_rate", math.inf, "not a finite number"),
        ("learning_rate", None, "is empty"),
        ("lora_r", -4, "give 1 or more"),
        ("lora_r", 2.5, "not a whole number"),
        ("lora_r", "many", "not a whole number"),
        ("max_length", 10**9, "too large"),
        ("neftune_noise_alpha", 5000, "give 1000 or less"),
        ("neftune_noise_alpha", math.nan, "give a number from 0 to 1000"),
        pytest.param("loraplus_lr_ratio", 10**400, "is out of range", id="huge"),
        ("label_smoothing_factor", "inf", "give a number from 0 to less than 1"),
        ("early_stopping_patience", math.inf, "give a whole number from 0 to 1000000"),
        ("packing", "perhaps", "not true or false"),
        ("optim", "adam", "not a choice"),
        ("target_modules", "../../etc", "contains forbidden characters"),
        ("model", "a\x00b", "contains forbidden characters"),
        ("model", "", "is empty"),
        ("method", ["lora"], "is not one of full, freeze, lora, qlora, lora-8bit"),
        ("trust_remote_code", True, "unknown field"),
        ("__class__", "x", "unknown field"),
    ],
)
def test_a_bad_value_is_named_with_what_to_do(field: str, value: object, says: str) -> None:
    assert says in problems(**{field: value})[field]


def test_pissa_is_refused_on_a_quantised_base() -> None:
    assert "16 bits" in problems(method="qlora", init_lora_weights="pissa")["init_lora_weights"]
    assert (
        JobSpec.parse({"method": "lora", "init_lora_weights": "pissa"}).init_lora_weights == "pissa"
    )


@pytest.mark.parametrize("text", ["", "{", "[]", '"job"', "null"])
def test_a_bad_job_file_is_a_problem_not_a_traceback(text: str) -> None:
    with pytest.raises(SpecError):
        JobSpec.from_json(text)


def test_every_field_has_a_description() -> None:
    for name, field in JobSpec.model_fields.items():
        assert (field.description or "").endswith("."), name


def test_a_job_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        JobSpec.parse({}).lora_r = 3  # type: ignore[misc]


def test_numbers_beyond_json_are_never_written() -> None:
    assert "NaN" not in JobSpec.parse({}).to_json()
    json.loads(JobSpec.parse({}).to_json(), parse_constant=pytest.fail)


@pytest.mark.parametrize("name", ["max_steps", "lora_r", "learning_rate"])
@pytest.mark.parametrize("value", [True, False])
def test_true_and_false_are_no_numbers(name: str, value: bool) -> None:
    problem = problems(**{name: value})[name]
    assert f"{value} is not a".lower() in problem


def test_a_flag_takes_true_and_false() -> None:
    assert JobSpec.parse({"packing": True}).packing is True


def test_a_field_that_a_job_file_has_twice_is_named() -> None:
    with pytest.raises(SpecError, match="has the field 'model' twice; remove one of them"):
        JobSpec.from_json('{"model": "demo", "model": "other"}')


@pytest.mark.parametrize("num_devices", [2, 0, "2"])
def test_a_divided_job_gets_an_optimizer_that_can_be_divided(num_devices: object) -> None:
    fields = {"method": "qlora", "parallelism": "fsdp", "num_devices": num_devices}
    assert JobSpec.parse(fields).optim == "adamw_torch_fused"


@pytest.mark.parametrize("fields", [{"num_devices": 2}, {"parallelism": "fsdp"}])
def test_a_job_that_is_not_divided_keeps_the_optimizer_of_its_method(
    fields: dict[str, object],
) -> None:
    assert JobSpec.parse({"method": "qlora", **fields}).optim == "paged_adamw_8bit"


def test_an_optimizer_that_was_named_is_refused_where_it_cannot_be_divided() -> None:
    fields = {"parallelism": "fsdp", "num_devices": 2, "optim": "paged_adamw_8bit"}
    with pytest.raises(SpecError, match="cannot update weights that are divided"):
        JobSpec.parse(fields)
