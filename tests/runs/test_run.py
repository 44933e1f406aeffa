"""Values that a run derives from its files: time, price, checkpoints, comparison."""

import json

import pytest

from core import runs
from core.advise import PLANNED_FIELDS
from core.after_training.differences import compare_runs
from core.resolve import resolve
from core.runs import Home, Run
from core.runs.run import NEXT_STAGE_KEEPS
from core.training.contract.files import write_json
from core.training.record import RunFiles
from tests.builders.fake_runs import (
    FINISHED,
    NewRun,
    bare_run,
    write_metrics,
)


def test_the_size_of_a_run_is_the_sum_of_its_files(finished: Run) -> None:
    before = finished.disk_bytes()
    (finished.folder / "output").mkdir()
    (finished.folder / "output" / "adapter.safetensors").write_bytes(b"0" * 5000)
    assert finished.disk_bytes() == before + 5000


def test_time_and_price_are_those_of_the_gpu(home: Home) -> None:
    bare_run(home, "a", gpu="a100-80gb")
    run = runs.read(home, "a")
    assert run.seconds == 3600
    assert run.usd
    assert run.usd > 0.5
    bare_run(home, "b")
    assert runs.read(home, "b").usd is None


def test_setting_the_clock_does_not_change_the_time(home: Home) -> None:
    folder = bare_run(home, "a", gpu="a100-80gb")
    write_json(folder / "status.json", FINISHED | {"updated": 9e8, "seconds": 1800.0})
    assert runs.read(home, "a").seconds == 1800
    record = RunFiles(folder)
    record.update(state="finished")
    assert 0 <= runs.read(home, "a").status.seconds < 60


def test_a_comparison_has_differing_settings_and_all_results(home: Home) -> None:
    first, second = bare_run(home, "a", lora_r=4, seed=1), bare_run(home, "b", lora_r=8, seed=1)
    write_metrics(first, range(1, 5), eval_loss=2.5)
    found = {each.name: each for each in compare_runs([runs.read(home, "a"), runs.read(home, "b")])}
    assert found["lora_r"].values == (4, 8)
    assert "seed" not in found
    assert not found["lora_r"].is_result
    assert found["eval_loss"].values == (2.5, None)
    assert found["eval_loss"].is_result
    assert found["loss"].values == (4, None)
    assert second.exists()


@pytest.mark.parametrize(
    ("files", "complete"),
    [
        ({1: ["manifest.json"], 2: ["trainer_state.json"]}, [True, False]),
        ({1: ["trainer_state.json"], 2: []}, [True, False]),
        ({}, []),
    ],
)
def test_a_checkpoint_is_complete_by_its_manifest(
    home: Home, files: dict[int, list[str]], complete: object
) -> None:
    folder = bare_run(home, "a")
    for step, names in files.items():
        place = folder / f"checkpoints/checkpoint-{step}"
        place.mkdir(parents=True)
        for name in ("model.safetensors", *names):
            (place / name).write_text("12345")
    (folder / "checkpoints/.checkpoint-9.new").mkdir(parents=True)
    run = runs.read(home, "a")
    found = run.checkpoints
    assert [each.is_complete for each in found] == complete
    assert [each.step for each in found] == list(files)
    assert run.has_checkpoint == any(complete)
    assert all(each.num_bytes >= 5 for each in found)


@pytest.mark.parametrize(
    ("status", "peak"),
    [
        ({}, None),
        ({"phase_peak_bytes": {"load": 5, "backward": 7}, "baseline_bytes": 100}, 107),
        ({"phase_peak_bytes": {"backward": 7}, "baseline_bytes": 0, "peak_allocated_bytes": 9}, 9),
    ],
)
def test_the_peak_is_that_of_the_gpu_or_of_the_process(
    home: Home, new_run: NewRun, status: dict[str, object], peak: int | None
) -> None:
    run = new_run()
    write_json(run.folder / "status.json", {"state": "finished", **status})
    assert runs.read(home, run.id).peak_bytes == peak


def test_a_run_is_json(home: Home, new_run: NewRun) -> None:
    listed = json.loads(json.dumps([run.to_json() for run in (new_run(),)]))
    assert listed[0].keys() >= {
        "id",
        "state",
        "model",
        "stage",
        "method",
        "created",
        "step",
        "max_steps",
        "loss",
    }


def test_a_torn_last_line_is_left_out(new_run: NewRun) -> None:
    run = new_run()
    (run.folder / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 2.0}\n\0\0\n[1]\n{"step": 2, "lo'
    )
    assert run.metrics() == ({"step": 1, "loss": 2.0},)


def test_the_log_tail_of_a_long_log_begins_at_a_line(new_run: NewRun) -> None:
    run = new_run()
    (run.folder / "log.txt").write_text("".join(f"line {number}\n" for number in range(5000)))
    lines = run.log_tail(1000).splitlines()
    assert lines[-1] == "line 4999"
    assert all(line.startswith("line ") for line in lines)


def test_the_same_job_can_be_resolved_again_on_its_own_data(new_run: NewRun) -> None:
    run = new_run(lora_r=4)
    again = resolve(run.fields_again())
    assert again.job.lora_r == 4
    assert again.datasets["dataset"] == run.folder / "data/train.jsonl"


def test_a_next_stage_keeps_or_chooses_every_planned_field() -> None:
    chosen_again = {
        "activation_memory_budget",
        "activation_offloading",
        "attn_implementation",
        "packing",
        "precompute_ref_log_probs",
        "torch_compile",
    }
    assert PLANNED_FIELDS - set(NEXT_STAGE_KEEPS) == chosen_again


def test_a_next_stage_starts_from_the_adapter(new_run: NewRun) -> None:
    run = new_run(lora_r=4)
    fields = run.fields_of_next_stage("dpo")
    assert fields["adapter"] == str(run.folder / "output")
    assert fields["lora_r"] == run.job.lora_r


def test_a_next_stage_starts_from_the_model_if_all_weights_trained(new_run: NewRun) -> None:
    run = new_run(method="full")
    assert run.fields_of_next_stage("dpo")["model"] == str(run.folder / "output")
