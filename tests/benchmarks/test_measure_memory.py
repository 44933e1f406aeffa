"""Program that measures memory: its grid, its model folders, and toys of every point."""

import dataclasses
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import get_args

import pytest

from benchmarks import measure_memory, memory_accuracy, memory_grid
from benchmarks.measure_memory import (
    asked,
    expected_seconds,
    is_final,
    make_run_folder,
    measure,
    measure_grid,
)
from benchmarks.memory_grid import (
    FIRST,
    GRID,
    MOST_SAVED_PARAMETERS,
    Point,
    RowKind,
    job,
    toys,
)
from benchmarks.memory_inputs import write_model
from benchmarks.memory_scores import Row, accuracies, predict, read_rows
from core.device import local_gpu, this_machine
from core.job import JobSpec
from core.models import Gpu, gpus
from core.training.contract.job import EXTRA_OPTIMIZERS, OptimizerName
from core.training.contract.methods import METHODS
from core.training.contract.stages import STAGES
from tests.builders.paths import ROOT
from tests.builders.training_runs import lines_of, status_of, train

training = pytest.mark.training
slow = partial(pytest.param, marks=pytest.mark.slow)
H100 = gpus()["h100"]
PHASES = {"load", "forward", "backward", "optimizer_step", "eval", "save"}
NOT_NEEDED = ("gradio", "rich", "plotly", "filelock", "orjson", "torch")
"""Packages that this program does not import; torch only in the process that it starts."""
SMALL = Point("meta-llama/Llama-3.2-1B", job("lora", 2, 1024))
TOY = dataclasses.replace(SMALL, is_toy=True)


def cpu() -> Gpu:
    """Return the "card" of toys."""
    return local_gpu(dataclasses.replace(this_machine(), gpus=()))


class FakeMeasure:
    """Trains nothing and remembers the points that it should measure."""

    def __init__(self) -> None:
        self.asked: list[Point] = []
        self.errors: dict[str, str] = {}
        """Point -> error."""

    def __call__(self, point: Point, gpu: Gpu, limit_seconds: float) -> Row:
        self.asked.append(point)
        if self.errors.get(point.id) == "no row":
            raise OSError("No space left on device")
        row = asked(point, gpu) | {"seconds": 1, "seconds_per_step": 1}
        if point.id in self.errors:
            row["error"] = self.errors[point.id]
        return row


@pytest.fixture
def fake_measure() -> FakeMeasure:
    return FakeMeasure()


def jobs(points: tuple[Point, ...]) -> list[JobSpec]:
    return [point.job(point.model) for point in points]


def point_id(point: Point) -> str:
    return point.id


# Grid


def test_every_point_has_a_name_of_its_own() -> None:
    assert len({point.id for point in GRID + toys()}) == 2 * len(GRID)


def test_every_point_fits_a_large_card() -> None:
    for point in GRID:
        assert predict(asked(point, H100)).total_bytes < H100.capacity_bytes, point.id


def test_the_estimate_of_a_point_counts_its_parameters() -> None:
    for point in GRID:
        if point.stage.head != "score":
            predicted = predict(asked(point, H100))
            assert predicted.num_parameters == point.shape.num_parameters, point.id


def test_the_first_points_take_ten_minutes_of_a_large_card() -> None:
    assert sum(expected_seconds(point, H100) for point in FIRST) < 600


@pytest.mark.parametrize(
    ("field", "choices"),
    [
        ("method", set(METHODS)),
        ("optim", set(get_args(OptimizerName)) - set(EXTRA_OPTIMIZERS)),
        ("gradient_checkpointing", {True, False}),
        ("packing", {True, False}),
        ("attn_implementation", {"sdpa", "eager", "varlen"}),
        ("torch_compile", {True, False}),
    ],
)
def test_the_first_points_have_every_choice(field: str, choices: set[object]) -> None:
    assert {getattr(each, field) for each in jobs(FIRST)} == choices


def test_the_first_points_have_every_kind_of_rows() -> None:
    assert {point.rows for point in FIRST} == set(get_args(RowKind))


def test_the_first_points_have_every_family() -> None:
    assert families(FIRST) == families(GRID)


def test_the_first_points_have_stages_beyond_fine_tuning() -> None:
    assert {"dpo", "kto", "grpo"} <= {point.stage.id for point in FIRST}


def test_the_grid_has_every_stage_that_can_be_trained() -> None:
    trainable = {stage.id for stage in STAGES.values() if stage.is_trainable}
    assert trainable - {"cpt"} <= {point.stage.id for point in GRID}


def families(points: tuple[Point, ...]) -> set[str]:
    return {point.shape.model_type for point in points}


def test_the_grid_has_many_families() -> None:
    assert len(families(GRID)) >= 8


def test_the_grid_has_small_and_large_models() -> None:
    sizes = [point.shape.num_parameters for point in GRID]
    assert (min(sizes) < 0.6e9, max(sizes) > 14e9) == (True, True)


def test_the_grid_has_a_mixture_of_experts() -> None:
    assert any(point.shape.num_experts for point in GRID)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("per_device_train_batch_size", {1, 2, 4, 8}),
        ("max_length", {512, 1024, 2048, 4096, 8192}),
        ("halve_batch_on_oom", {False}),
    ],
)
def test_the_jobs_of_the_grid_have_these_values(field: str, values: set[object]) -> None:
    assert {getattr(each, field) for each in jobs(GRID)} == values


@pytest.mark.parametrize("claim", ["evaluates", "saves"])
def test_some_points_evaluate_and_save_and_some_do_not(claim: str) -> None:
    assert {getattr(point, claim) for point in GRID} == {True, False}


def test_only_full_models_that_are_quick_to_write_are_saved() -> None:
    saved = [point for point in GRID if point.saves and point.fields["method"] == "full"]
    assert max(point.shape.num_parameters for point in saved) <= MOST_SAVED_PARAMETERS


def test_a_padded_batch_has_one_shorter_row() -> None:
    assert SMALL.train_tokens() == (1024, 896)


def test_a_batch_of_equal_rows_has_none() -> None:
    assert dataclasses.replace(SMALL, rows="equal").train_tokens() == (1024, 1024)


def test_a_packed_batch_is_full() -> None:
    packed = dataclasses.replace(SMALL, fields=job("lora", 4, 2048, packing=True))
    assert sum(packed.train_tokens()) == 4 * 2048


def test_varied_rows_begin_at_an_eighth_of_the_longest() -> None:
    tokens = dataclasses.replace(SMALL, rows="varied").train_tokens()
    assert (min(tokens), max(tokens)) == (128, 1024)


# Model folder


def test_the_weights_of_8_billion_parameters_take_no_disk_space(tmp_path: Path) -> None:
    write_model(tmp_path / "model", Point("meta-llama/Llama-3.1-8B", {}).config)
    weights = (tmp_path / "model" / "model.safetensors").stat()
    assert weights.st_size > 2 * 8_030_261_248
    assert weights.st_blocks * 512 < 100e6


@pytest.mark.parametrize("model", ["meta-llama/Llama-3.2-1B", "Qwen/Qwen3-30B-A3B"])
def test_the_header_of_the_weights_covers_the_file_without_a_gap(
    tmp_path: Path, model: str
) -> None:
    write_model(tmp_path / "model", Point(model, {}, num_layers=2).config)
    path = tmp_path / "model" / "model.safetensors"
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        spans = [entry["data_offsets"] for entry in json.loads(file.read(length)).values()]
    begins, ends = (tuple(edges) for edges in zip(*spans, strict=True))
    assert begins == (0, *ends[:-1])
    assert 8 + length + ends[-1] == path.stat().st_size


# Measuring


@pytest.mark.slow
@training
@pytest.mark.parametrize(
    "point",
    [
        dataclasses.replace(SMALL, fields=job("qlora", 2, 1024), rows="varied", is_toy=True),
        dataclasses.replace(SMALL, fields=job("full", 4, 1024, packing=True), is_toy=True),
        dataclasses.replace(SMALL, model="Qwen/Qwen3-30B-A3B", num_layers=8, is_toy=True),
    ],
    ids=point_id,
)
def test_a_toy_is_trained_by_our_own_program_in_a_process(point: Point) -> None:
    row = measure(point, cpu())
    assert "error" not in row
    assert row["num_tokens"] == point.num_tokens
    assert row["num_parameters"] == point.shape.num_parameters
    assert set(row["phase_peak_bytes"]) == PHASES
    assert json.loads(json.dumps(row))["job"]["method"] == point.fields["method"]


@training
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # from within PyTorch's compiler
@pytest.mark.parametrize("point", [toys()[0], *map(slow, toys()[1:])], ids=point_id)
def test_every_point_builds_and_steps_at_toy_size(
    point: Point, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = make_run_folder(tmp_path, point)
    assert train(run) == 0
    printed = "".join(capfd.readouterr())
    if point.stage.head != "score":  # a new head is not in the weights
        complaints = ("MISSING", "UNEXPECTED", "newly initialized")
        assert [word for word in complaints if word in printed] == []
    num_tokens = [line for line in lines_of(run) if "loss" in line][-1]["num_tokens"]
    assert point.num_tokens in (None, num_tokens)
    status, predicted = status_of(run), predict(asked(point, cpu()))
    assert status["num_parameters"] == predicted.num_parameters
    assert status["num_trainable_parameters"] == predicted.num_trainable_parameters


@pytest.mark.slow
@training
def test_a_result_that_is_too_large_to_save_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory_grid, "MOST_SAVED_PARAMETERS", 0)
    row = measure(dataclasses.replace(TOY, fields=job("full", 2, 1024)), cpu())
    assert "error" not in row
    assert set(row["phase_peak_bytes"]) == PHASES - {"save"}


def test_it_needs_no_more_packages_than_the_training_program() -> None:
    program = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({NOT_NEEDED}))
sys.argv = ["measure_memory.py", "--toy", "--list"]
runpy.run_path("benchmarks/measure_memory.py", run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(GRID) + 1


def test_a_measured_point_is_measured_again_only_if_it_failed(
    tmp_path: Path, fake_measure: FakeMeasure
) -> None:
    out = tmp_path / "out.jsonl"
    points = [TOY, dataclasses.replace(TOY, rows="equal"), dataclasses.replace(TOY, rows="varied")]
    fake_measure.errors = {
        points[0].id: "no row",
        points[1].id: "Out of GPU memory.",
        points[2].id: "A bug.",
    }
    measure_grid(points, cpu(), out, 60, fake_measure)
    measure_grid(points, cpu(), out, 60, fake_measure)
    assert fake_measure.asked == [*points, points[0], points[2]]
    rows = read_rows(out)
    assert [is_final(rows[point.id]) for point in points] == [False, True, False]


def test_a_point_that_cannot_be_measured_leaves_a_traceback(
    tmp_path: Path, fake_measure: FakeMeasure
) -> None:
    out = tmp_path / "out.jsonl"
    fake_measure.errors = {TOY.id: "no row"}
    measure_grid([TOY], cpu(), out, 60, fake_measure)
    row = read_rows(out)[TOY.id]
    assert "No space left" in row["error"]
    assert "Traceback" in row["log_tail"]


@training
@pytest.mark.slow
def test_a_training_that_is_not_finished_in_time_says_so() -> None:
    late = measure(TOY, cpu(), limit_seconds=2)
    assert "Not finished" in late["error"]
    assert "log_tail" in late


@training
@pytest.mark.slow
def test_a_training_that_fails_leaves_the_end_of_its_log() -> None:
    broken = dataclasses.replace(TOY, fields=job("lora", 2, 1024, modules_to_save="no_such_layer"))
    row = measure(broken, cpu())
    assert "no_such_layer" in row["error"]
    assert "no_such_layer" in row["log_tail"]


def test_a_point_that_takes_too_long_is_not_started(
    tmp_path: Path, fake_measure: FakeMeasure, capsys: pytest.CaptureFixture[str]
) -> None:
    measure_grid([TOY], cpu(), tmp_path / "out.jsonl", 0.1, fake_measure)
    assert fake_measure.asked == []
    assert "left out" in capsys.readouterr().out


def test_a_point_that_is_too_large_for_the_card_is_not_started(
    fake_measure: FakeMeasure, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = dataclasses.replace(H100, capacity_bytes=2**30)
    measure_grid([SMALL], tiny, None, 60, fake_measure)
    assert fake_measure.asked == []
    assert "GiB" in capsys.readouterr().out


def test_a_machine_without_a_gpu_gets_a_hint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = dataclasses.replace(this_machine(), gpus=(), no_gpu_reason="no driver")
    monkeypatch.setattr(measure_memory, "this_machine", lambda: bare)
    monkeypatch.setattr(sys, "argv", ["measure_memory.py"])
    assert measure_memory.main() == 2
    assert "no driver" in capsys.readouterr().err


def test_a_row_that_measures_what_was_estimated_scores_no_error() -> None:
    predicted = predict(asked(SMALL, H100))
    row = asked(SMALL, H100) | {
        "phase_peak_bytes": {**predicted.phases},
        "peak_allocated_bytes": predicted.peak_allocated_bytes,
        "peak_reserved_bytes": 2 * predicted.peak_reserved_bytes,
    }
    failed = {**row, "error": "Out of GPU memory."}
    scores = {(score.group, score.metric): score for score in accuracies([row, failed])}
    assert scores[f"{H100.name} lora", "allocated"].worst == 0
    assert scores[f"{H100.name} lora", "reserved"].bias == pytest.approx(-0.5)
    assert scores[f"{H100.name} backward", "allocated"].n == 1


def test_memory_accuracy_scores_our_own_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = asked(SMALL, H100) | {"phase_peak_bytes": {}, "peak_allocated_bytes": 10**10}
    (tmp_path / "h100.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    monkeypatch.setattr(
        sys, "argv", ["memory_accuracy.py", "--rows", str(tmp_path / "h100.jsonl"), "--json"]
    )
    memory_accuracy.main()
    (group,) = json.loads(capsys.readouterr().out)["groups"]
    assert (group["group"], group["metric"], group["n"]) == (f"{H100.name} lora", "allocated", 1)
