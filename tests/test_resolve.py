"""Resolve jobs: given values, choices of a profile, refusals, every problem at once."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from core.advise import PLANNED_FIELDS
from core.dataset.token_lengths import RowLengths
from core.job import JobSpec, SpecError
from core.resolve import ResolvedJob, default_fields, resolve
from core.speed import RowStatistics
from tests.builders.weight_headers import write_header

LLAMA = {"model": "meta-llama/Llama-3.1-8B", "gpu": "h200"}
SHORT_ROWS = RowStatistics(20_000, mean_tokens=300)


def problems_of(**fields: object) -> dict[str, str]:
    with pytest.raises(SpecError) as caught:
        resolve(fields)
    return {problem.field: str(problem) for problem in caught.value.problems}


def test_a_job_that_chooses_for_itself_stays_as_it_is() -> None:
    resolved = resolve({**LLAMA, "per_device_train_batch_size": 3})
    assert resolved.job == JobSpec.parse({**LLAMA, "per_device_train_batch_size": 3})
    assert not resolved.plan.choices


def test_a_profile_chooses_what_is_not_given() -> None:
    resolved = resolve({**LLAMA, "profile": "fastest"}, rows=SHORT_ROWS)
    assert resolved.job.packing
    assert resolved.job.attn_implementation == "varlen"
    assert {choice.field: choice.value for choice in resolved.plan.choices} == {
        field: getattr(resolved.job, field) for field in resolved.plan.change
    }


def test_what_is_given_is_not_chosen() -> None:
    resolved = resolve(
        {**LLAMA, "profile": "fastest", "packing": False, "gradient_checkpointing": True},
        rows=SHORT_ROWS,
    )
    assert (resolved.job.packing, resolved.job.gradient_checkpointing) == (False, True)
    assert not {"packing", "gradient_checkpointing"} & resolved.plan.change.keys()


def test_a_form_says_which_values_the_user_set() -> None:
    form = {
        **JobSpec.parse(LLAMA).model_dump(),
        "profile": "fastest",
        "per_device_train_batch_size": 16,
    }
    loose, kept = (
        resolve(form, set_by_user, SHORT_ROWS).job
        for set_by_user in ((), ("per_device_train_batch_size",))
    )
    assert loose == resolve({**LLAMA, "profile": "fastest"}, rows=SHORT_ROWS).job
    assert kept.per_device_train_batch_size == 16


def test_rows_are_asked_for_once_the_files_are_found() -> None:
    asked: list[ResolvedJob] = []

    def find_rows(found: ResolvedJob) -> RowStatistics:
        asked.append(found)
        return SHORT_ROWS

    fields = {**LLAMA, "profile": "fastest"}
    resolved = resolve(fields, rows=find_rows)
    assert resolved == resolve(fields, rows=SHORT_ROWS)
    assert [found.datasets for found in asked] == [resolved.datasets]


def test_a_planned_job_is_the_same_when_it_is_asked_for_again() -> None:
    job = resolve({**LLAMA, "profile": "smallest"}, rows=SHORT_ROWS).job
    assert resolve(job.model_dump()).job == job


def test_the_demo_is_planned_from_its_settings() -> None:
    demo = resolve({**default_fields("demo", "lora"), "profile": "fastest"}, set_by_user=()).job
    assert demo.effective_batch_size == 8


def test_an_architecture_without_an_estimate_has_no_plan(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "xlnet"}))
    resolved = resolve({"model": str(tmp_path), "profile": "fastest"})
    assert resolved.model.shape is None
    assert not resolved.plan.choices
    with pytest.raises(SpecError, match="memory cannot be estimated"):
        resolved.estimate()


def test_a_forecast_without_a_speed_still_has_the_memory() -> None:
    without_a_gpu = resolve({"model": "demo"})
    without_a_gpu = replace(
        without_a_gpu, gpu=replace(without_a_gpu.gpu, compute_capability=(0, 0))
    )
    forecast = without_a_gpu.forecast()
    assert forecast["speed"] == {}
    assert forecast["total_bytes"] == without_a_gpu.estimate().total_bytes


def test_what_can_only_be_estimated_is_refused_for_training() -> None:
    resolved = resolve({**LLAMA, "stage": "ppo"})
    assert resolved.estimate().total_bytes > 0
    with pytest.raises(SpecError, match="stage: PPO can be estimated, but not trained"):
        resolved.require_trainable()


def test_what_can_be_trained_is_not_refused() -> None:
    resolve(LLAMA).require_trainable()


def test_a_warm_up_longer_than_the_run_is_refused_once_the_rows_are_known() -> None:
    resolved = resolve({**LLAMA, "num_train_epochs": 1, "warmup_steps": 500})
    resolved.require_trainable()  # the number of steps is not known yet
    rows = RowStatistics(num_rows=100, mean_tokens=20)
    with pytest.raises(SpecError, match="would end before the warm-up of 500"):
        replace(resolved, rows=rows).require_trainable()


def test_a_file_without_rows_is_no_fault_of_the_warm_up() -> None:
    resolved = resolve({**LLAMA, "num_train_epochs": 1})
    replace(resolved, rows=RowStatistics(num_rows=0, mean_tokens=1)).require_trainable()


def test_every_problem_is_reported_at_once() -> None:
    found = problems_of(model="./nowhere", gpu="abacus", dataset="absent.jsonl", lora_r=0)
    assert set(found) == {"model", "gpu", "dataset", "lora_r"}


@pytest.mark.parametrize(
    ("dataset", "words"),
    [("someone/some-data", "from the Hub"), ("some/rows.jsonl", "path of a JSONL file")],
)
def test_a_missing_file_and_a_dataset_of_the_hub_get_different_advice(
    dataset: str, words: str
) -> None:
    assert words in problems_of(dataset=dataset)["dataset"]


@pytest.mark.parametrize("form", ['"{}"', "'{}'", "  {} "])
@pytest.mark.parametrize("field", ["dataset", "eval_dataset", "mix"])
def test_quotes_and_blanks_around_a_path_of_data_are_dropped(
    tmp_path: Path, field: str, form: str
) -> None:
    path = tmp_path / "my rows.jsonl"
    path.write_text("{}")
    found = resolve({"model": "demo", "dataset": "demo", field: form.format(path)})
    assert path in [file for _field, file in found.files]


def test_a_file_whose_name_has_quotes_is_found(tmp_path: Path) -> None:
    path = tmp_path / "'rows.jsonl'"
    path.write_text("{}")
    found = resolve({"model": "demo", "dataset": str(path)})
    assert found.datasets["dataset"] == path


def test_targets_of_an_unknown_architecture_are_those_of_its_weights(tmp_path: Path) -> None:
    model = {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 1, "vocab_size": 16}
    (tmp_path / "config.json").write_text(json.dumps(model))
    tensors = {"transformer.h.0.attn.c_attn.weight": ("F32", (8, 24))}
    write_header(tmp_path / "model.safetensors", tensors)
    fields = {"model": str(tmp_path), "method": "lora"}
    assert resolve({**fields, "target_modules": "c_attn"})
    with pytest.raises(SpecError, match="has no layer q_proj; choose from c_attn, or all-linear"):
        resolve({**fields, "target_modules": "c_attn,q_proj"})


def row_lengths(num_rows: int, num_tokens: int) -> RowLengths:
    """Return lengths of rows that are all alike."""
    lengths = RowLengths(num_rows)
    row = np.array([num_tokens, 0, num_tokens, num_tokens], dtype=np.int32)
    lengths.extend(np.tile(row, num_rows).tobytes(), unreadable_rows=0)
    return lengths


@pytest.mark.parametrize(("of_evaluation", "longest"), [(15, 20), (30, 30), (None, None)])
def test_longest_row_may_be_one_of_the_evaluation_file(
    tmp_path: Path, of_evaluation: int | None, longest: int | None
) -> None:
    file = tmp_path / "evaluation.jsonl"
    file.write_text('{"text": "a"}\n')
    resolved = resolve({"model": "demo", "dataset": "demo", "eval_dataset": str(file)})
    evaluation = row_lengths(5, of_evaluation).at(64) if of_evaluation else None
    rows = resolved.row_statistics(row_lengths(90, 20).at(64), evaluation)
    assert (rows.num_rows, rows.max_tokens) == (90, longest)


def test_job_with_an_evaluation_file_is_estimated_for_its_rows(tmp_path: Path) -> None:
    file = tmp_path / "evaluation.jsonl"
    file.write_text('{"text": "a"}\n')
    fields = {"model": "demo", "dataset": "demo", "max_length": 1024}
    alone, beside = resolve(fields), resolve({**fields, "eval_dataset": str(file)})
    short = row_lengths(300, 40).at(1024)
    without_file = replace(alone, rows=alone.row_statistics(short)).estimate()
    with_file = replace(beside, rows=beside.row_statistics(short, short)).estimate()
    assert with_file.total_bytes == without_file.total_bytes
    assert with_file.total_bytes < 0.9 * beside.estimate().total_bytes


def test_measured_rows_of_a_mix_count_the_held_out_ones(tmp_path: Path) -> None:
    (tmp_path / "more.jsonl").write_text('{"text": "a"}\n')
    lengths = row_lengths(90, 20)
    mixed = resolve({"model": "demo", "mix": str(tmp_path / "more.jsonl"), "eval_fraction": 0.1})
    alone = resolve({"model": "demo", "eval_fraction": 0.1})
    mixed_rows, whole = (job.row_statistics(lengths.at(64)) for job in (mixed, alone))
    assert (mixed_rows.num_rows, mixed_rows.max_tokens) == (100, None)
    assert (whole.num_rows, whole.max_tokens, whole.mean_tokens) == (90, 20, 20)


def test_the_files_of_a_mix_are_found_with_their_weights(tmp_path: Path) -> None:
    (tmp_path / "more.jsonl").write_text('{"text": "a"}')
    resolved = resolve({**LLAMA, "mix": f"{tmp_path}/more.jsonl = 0.5"})
    assert resolved.mix == ((tmp_path / "more.jsonl", 0.5),)


@pytest.mark.parametrize(
    ("mix", "words"), [("absent.jsonl = 2", "there is no file"), ("more.jsonl = much", "line 1")]
)
def test_a_wrong_mix_is_a_problem(mix: str, words: str) -> None:
    assert words in problems_of(mix=mix)["mix"]


@pytest.mark.parametrize(
    ("model", "method", "stage", "field", "value"),
    [
        ("x", "lora", "sft", "learning_rate", 2e-4),
        ("x", "full", "sft", "learning_rate", 2e-5),
        ("x", "lora", "dpo", "learning_rate", 5e-6),
        ("x", "lora", "cpt", "packing", True),
        ("demo", "lora", "dpo", "learning_rate", 5e-4),
        ("x", "no such method", "sft", "lora_r", 16),
    ],
)
def test_a_default_is_that_of_the_demo_or_the_stage_or_the_method(
    model: str, method: str, stage: str, field: str, value: object
) -> None:
    assert default_fields(model, method, stage)[field] == value


def test_without_a_stage_defaults_are_those_of_sft() -> None:
    assert default_fields("x", "lora") == default_fields("x", "lora", "sft")
    assert default_fields("x", "lora").keys() >= PLANNED_FIELDS
