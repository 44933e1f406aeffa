"""The program that measures memory: its grid, its model folders, and that every point builds and steps at toy size."""

import dataclasses
import json
import subprocess
import sys
from functools import partial
from itertools import pairwise
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
from benchmarks.memory_grid import FIRST, GRID, MOST_SAVED_PARAMETERS, Point, job, toys
from benchmarks.memory_inputs import write_model
from benchmarks.memory_scores import Row, accuracies, predict, read_rows
from core.device import local_gpu, this_machine
from core.job import JobSpec, OptimizerName
from core.models import Gpu, gpus
from core.training.contract.methods import METHODS
from core.training.contract.optimizers import EXTRA_OPTIMIZERS
from core.training.contract.stages import STAGES
from tests.builders.paths import ROOT
from tests.builders.training_runs import lines_of, status_of, train

training = pytest.mark.training
slow = partial(pytest.param, marks=pytest.mark.slow)
H100 = gpus()["h100"]
PHASES = {"load", "forward", "backward", "optimizer_step", "eval", "save"}
NOT_NEEDED = ("gradio", "rich", "plotly", "filelock", "orjson", "torch")
"""By this program; the last only by the one that it starts."""
SMALL = Point("meta-llama/Llama-3.2-1B", job("lora", 2, 1024))
TOY = dataclasses.replace(SMALL, is_toy=True)


def the_processor() -> Gpu:
    """The card of toys."""
    return local_gpu(dataclasses.replace(this_machine(), gpus=()))


class FakeMeasure:
    """Trains nothing: remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[Point] = []
        self.errors: dict[str, str] = {}
        """Point -> how it fails."""

    def __call__(self, point: Point, gpu: Gpu, limit_seconds: float) -> Row:
        self.asked.append(point)
        if self.errors.get(point.id) == "no row":
            raise OSError("No space left on device")
        row = asked(point, gpu) | {"seconds": 1, "seconds_per_step": 1}
        return row | ({"error": self.errors[point.id]} if point.id in self.errors else {})


@pytest.fixture
def fake_measure(monkeypatch: pytest.MonkeyPatch) -> FakeMeasure:
    fake = FakeMeasure()
    monkeypatch.setattr(measure_memory, "measure", fake)
    return fake


def jobs(points: tuple[Point, ...]) -> list[JobSpec]:
    return [point.job(point.model) for point in points]


def point_id(point: Point) -> str:
    return point.id


# The grid


def test_every_point_has_a_name_of_its_own() -> None:
    assert len({point.id for point in GRID + toys()}) == 2 * len(GRID)


@pytest.mark.parametrize("point", GRID, ids=point_id)
def test_every_point_is_a_job_with_an_estimate(point: Point) -> None:
    predicted = predict(asked(point, H100))
    assert predicted.total_bytes < H100.capacity_bytes
    if point.stage.head != "score":
        assert predicted.num_parameters == point.shape.num_parameters


def test_the_first_ten_minutes_of_a_large_card_see_every_choice_once() -> None:
    assert sum(expected_seconds(point, H100) for point in FIRST) < 600
    first = jobs(FIRST)
    assert {each.method for each in first} == set(METHODS)
    assert {each.optim for each in first} == set(get_args(OptimizerName)) - set(EXTRA_OPTIMIZERS)
    assert (
        {each.gradient_checkpointing for each in first}
        == {each.packing for each in first}
        == {True, False}
    )
    assert {each.attn_implementation for each in first} == {"sdpa", "eager", "varlen"}
    assert {each.torch_compile for each in first} == {True, False}
    assert {point.rows for point in FIRST} == {"padded", "equal", "varied"}
    assert {point.shape.model_type for point in FIRST} == {point.shape.model_type for point in GRID}


def test_the_grid_has_every_stage_that_can_be_trained() -> None:
    assert {point.stage.id for point in GRID} >= {
        stage.id for stage in STAGES.values() if stage.is_trainable
    } - {"cpt"}
    assert {"dpo", "kto", "grpo"} <= {point.stage.id for point in FIRST}


def test_the_grid_spans_families_sizes_batches_and_lengths() -> None:
    shapes = [point.shape for point in GRID]
    sizes = [shape.num_parameters for shape in shapes]
    assert len({shape.model_type for shape in shapes}) >= 8
    assert min(sizes) < 0.6e9 and max(sizes) > 14e9
    assert any(shape.num_experts for shape in shapes)
    assert {each.per_device_train_batch_size for each in jobs(GRID)} == {1, 2, 4, 8}
    assert not any(each.halve_batch_on_oom for each in jobs(GRID))
    assert {512, 1024, 2048, 4096, 8192} == {each.max_length for each in jobs(GRID)}
    assert {point.evaluates for point in GRID} == {point.saves for point in GRID} == {True, False}


def test_only_full_models_that_are_quick_to_write_are_saved() -> None:
    saved = [point for point in GRID if point.saves and point.fields["method"] == "full"]
    assert saved and all(point.shape.num_parameters <= MOST_SAVED_PARAMETERS for point in saved)


def test_a_batch_of_padded_rows_has_one_that_is_shorter_and_a_packed_one_has_no_gap() -> None:
    assert SMALL.train_tokens() == (1024, 896)
    assert dataclasses.replace(SMALL, rows="equal").train_tokens() == (1024, 1024)
    packed = dataclasses.replace(SMALL, fields=job("lora", 4, 2048, packing=True))
    assert sum(packed.train_tokens()) == 4 * 2048
    varied = dataclasses.replace(SMALL, rows="varied").train_tokens()
    assert (min(varied), max(varied)) == (128, 1024)


# The model folder


def test_the_weights_of_8_billion_parameters_take_no_room(tmp_path: Path) -> None:
    write_model(tmp_path / "model", Point("meta-llama/Llama-3.1-8B", {}).config)
    weights = (tmp_path / "model" / "model.safetensors").stat()
    assert weights.st_size > 2 * 8_030_261_248
    assert weights.st_blocks * 512 < 100e6


@pytest.mark.parametrize("kind", ["meta-llama/Llama-3.2-1B", "Qwen/Qwen3-30B-A3B"])
def test_the_header_of_the_weights_covers_the_file_without_a_gap(tmp_path: Path, kind: str) -> None:
    write_model(tmp_path / "model", Point(kind, {}, num_layers=2).config)
    path = tmp_path / "model" / "model.safetensors"
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        spans = [entry["data_offsets"] for entry in json.loads(file.read(length)).values()]
    assert spans[0][0] == 0 and all(before[1] == after[0] for before, after in pairwise(spans))
    assert 8 + length + spans[-1][1] == path.stat().st_size


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
def test_a_toy_is_trained_by_our_own_program_in_a_process_of_its_own(point: Point) -> None:
    row = measure(point, the_processor())
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
    said = capfd.readouterr()
    if point.stage.head != "score":  # which is new
        assert not any(
            word in said.out + said.err for word in ("MISSING", "UNEXPECTED", "newly initialized")
        )
    num_tokens = [line for line in lines_of(run) if "loss" in line][-1]["num_tokens"]
    assert point.num_tokens in (None, num_tokens)
    status, predicted = status_of(run), predict(asked(point, the_processor()))
    assert status["num_parameters"] == predicted.num_parameters
    assert status["num_trainable_parameters"] == predicted.num_trainable_parameters


@pytest.mark.slow
@training
def test_a_result_that_is_too_large_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_grid, "MOST_SAVED_PARAMETERS", 0)
    row = measure(dataclasses.replace(TOY, fields=job("full", 2, 1024)), the_processor())
    assert "error" not in row
    assert set(row["phase_peak_bytes"]) == PHASES - {"save"}


def test_it_starts_where_there_is_no_more_than_the_training_program_needs() -> None:
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


def test_a_point_that_is_measured_is_not_measured_again_unless_it_failed(
    tmp_path: Path, fake_measure: FakeMeasure
) -> None:
    out = tmp_path / "out.jsonl"
    points = [TOY, dataclasses.replace(TOY, rows="equal"), dataclasses.replace(TOY, rows="varied")]
    fake_measure.errors = {
        points[0].id: "no row",
        points[1].id: "Out of GPU memory.",
        points[2].id: "A bug.",
    }
    measure_grid(points, the_processor(), out, minutes=60)
    measure_grid(points, the_processor(), out, minutes=60)
    assert fake_measure.asked == [*points, points[0], points[2]]
    rows = read_rows(out)
    assert [is_final(rows[point.id]) for point in points] == [False, True, False]
    assert (
        "No space left" in rows[points[0].id]["error"]
        and "Traceback" in rows[points[0].id]["log_tail"]
    )


@training
@pytest.mark.slow  # a process of its own
def test_a_training_that_fails_leaves_the_end_of_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    late = measure(TOY, the_processor(), limit_seconds=2)
    assert "Not finished" in late["error"] and "log_tail" in late
    broken = dataclasses.replace(TOY, fields=job("lora", 2, 1024, modules_to_save="no_such_layer"))
    row = measure(broken, the_processor())
    assert "no_such_layer" in row["error"] and "no_such_layer" in row["log_tail"]


def test_a_point_that_does_not_fit_into_the_time_is_not_begun(
    tmp_path: Path, fake_measure: FakeMeasure, capsys: pytest.CaptureFixture[str]
) -> None:
    measure_grid([TOY], the_processor(), tmp_path / "out.jsonl", minutes=0.1)
    assert not fake_measure.asked and "left out" in capsys.readouterr().out


def test_a_training_that_is_hopeless_for_the_card_is_not_begun(
    fake_measure: FakeMeasure, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = dataclasses.replace(H100, capacity_bytes=2**30)
    measure_grid([SMALL], tiny, None, minutes=60)
    assert not fake_measure.asked and "GiB" in capsys.readouterr().out


def test_a_machine_without_a_card_is_told_of_the_toys(
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


def test_the_accuracy_record_scores_rows_of_our_own(
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
