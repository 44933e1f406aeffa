"""Test the benchmark of training speed: its grid, rows and table, and that every point trains."""

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks import training_speed
from benchmarks.speed_grid import (
    FIRST,
    GRID,
    METHODS,
    MOST_PASSES,
    NUM_LINES,
    SHORT,
    SpeedPoint,
    make_folder,
    make_model,
)
from benchmarks.training_speed import (
    flops_per_token,
    measure,
    measure_grid,
    print_table,
    read_lines,
    speed_of,
)
from core.device import local_gpu, this_machine
from core.models import gpus

H100 = gpus()["h100"]
TOYS = [point.as_toy for point in GRID if point.model == GRID[-1].model]
LORA = [point for point in TOYS if point.method == "lora" and point.rows.name == SHORT.name]


def name_of(point: SpeedPoint) -> str:
    return point.id


def row_of(point: SpeedPoint, **measured: object) -> dict[str, Any]:
    return {
        "id": point.id,
        "group": point.group,
        "contender": point.contender.name,
        "seconds_per_step": 0.5,
        "tokens_per_step": 800,
        "tokens_per_second": 1600,
        "gemm_share": 0.4,
        **measured,
    }


# The grid


def test_every_point_has_a_name_and_every_contender_meets_the_same_rows() -> None:
    assert len({point.id for point in GRID}) == len(GRID)
    assert set(Counter(point.group for point in GRID).values()) == {5}
    assert {point.method for point in GRID} == set(METHODS)
    ours = [point for point in GRID if point.contender.name == "tailor fastest"]
    assert [(point.model, point.method, point.rows) for point in ours][: len(FIRST)] == list(FIRST)
    assert {point.contender.name for point in GRID[-len(GRID) // 5 :]} == {"tailor smallest"}


@pytest.mark.parametrize("point", GRID, ids=name_of)
def test_no_point_takes_thousands_of_passes(point: SpeedPoint, tmp_path: Path) -> None:
    if point.contender.profile:
        job = point.job(tmp_path, H100)
        steps, passes = job.max_steps, job.gradient_accumulation_steps
    else:
        config = point.script(tmp_path, tmp_path)["config"]
        steps, passes = config["max_steps"], config["gradient_accumulation_steps"]
    assert steps >= NUM_LINES
    assert steps * passes <= MOST_PASSES


@pytest.mark.parametrize("point", [point for point in GRID if point.contender.profile], ids=name_of)
def test_our_program_is_planned_for_a_long_run_of_the_same_rows(point: SpeedPoint) -> None:
    job = point.job(Path("/models/m"), H100)
    assert job.max_steps % NUM_LINES == 0
    assert job.logging_steps == job.max_steps // NUM_LINES
    tokens_per_row = job.max_length if job.packing else point.mean_tokens
    tokens_per_step = point.rows.rows_per_step * point.mean_tokens
    assert job.effective_batch_size * tokens_per_row == pytest.approx(tokens_per_step, rel=0.1)


def test_chats_have_the_length_that_they_are_named_by() -> None:
    lengths = SHORT.lengths(2000)
    assert sum(lengths) / len(lengths) == pytest.approx(200, rel=0.1)
    assert min(lengths) >= 25
    assert max(lengths) > 3 * 200


def test_only_the_mathematics_counts_as_work() -> None:
    """Of an 8B model that recomputes nothing, with 2048 tokens a row."""
    model, _method, rows = FIRST[0]
    lora, full = (SpeedPoint(model, method, rows, GRID[0].contender) for method in ("lora", "full"))
    assert flops_per_token(lora) == pytest.approx(31.9e9, rel=0.01)
    assert flops_per_token(full) == pytest.approx(46.9e9, rel=0.01)


# Rows and table


def test_the_first_third_of_a_training_is_warming_up() -> None:
    times = (90, 100, 101, 102, 103, 104)
    lines = [
        {"step": 5 * n, "time": time, "num_tokens": 1000 * n}
        for n, time in enumerate(times, start=1)
    ]
    speed = speed_of([*lines, {"step": 30, "eval_loss": 1.0}])
    assert speed == {"seconds_per_step": 0.2, "tokens_per_step": 200, "tokens_per_second": 1000}


def test_the_table_compares_everyone_with_our_fastest(capsys: pytest.CaptureFixture[str]) -> None:
    ours, other, failed = LORA[:3]
    rows = [
        row_of(ours, peak_reserved_bytes=2**31),
        row_of(other, tokens_per_second=400),
        row_of(failed, error="exit code 1: too large"),
    ]
    print_table(rows)
    shown = capsys.readouterr().out
    assert "2.0    40.0%   1.00x" in shown
    assert "4.00x" in shown
    assert "too large" in shown


def test_a_grid_continues_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[SpeedPoint] = []

    def pretend(point: SpeedPoint, *_: object) -> dict[str, Any]:
        asked.append(point)
        if len(asked) == 2:
            raise OSError("no room")
        if len(asked) == 3:
            return row_of(point, error="CUDA out of memory")
        return row_of(point)

    monkeypatch.setattr(training_speed, "measure", pretend)
    monkeypatch.setattr(training_speed, "gemm_rate", lambda hides_gpu: 1e12)
    monkeypatch.setattr(training_speed, "make_model", lambda models, point: models)
    options = argparse.Namespace(minutes=1.0, out=tmp_path / "rows.jsonl", toy=True)
    for _ in range(2):
        assert len(measure_grid(LORA[:3], H100, options, tmp_path)) == 3
    assert asked == [*LORA[:3], LORA[1]]


# Real trainings


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def first_is_quick(points: list[SpeedPoint]) -> list[Any]:
    return [
        pytest.param(point, marks=[pytest.mark.slow] if number else [])
        for number, point in enumerate(points)
    ]


@pytest.mark.slow
@pytest.mark.training
@pytest.mark.parametrize("point", LORA[:2], ids=name_of)
def test_our_program_and_a_bare_script_are_measured_alike(point: SpeedPoint, models: Path) -> None:
    gpu = local_gpu(this_machine())
    row = measure(point, make_model(models, point), gpu, gemm=1e11, limit_seconds=300)
    assert "error" not in row, row["error"]
    assert row["tokens_per_second"] == pytest.approx(
        row["tokens_per_step"] / row["seconds_per_step"]
    )
    assert 0 < row["gemm_share"] < 1
    assert row["settings"]["max_length"] == 64
    assert "torch" in row["versions"]


@pytest.mark.training
@pytest.mark.filterwarnings(
    "ignore:`(is_)?gradient_checkpointing:FutureWarning", "ignore:None of the inputs have"
)
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU:UserWarning")
@pytest.mark.parametrize("point", first_is_quick(TOYS), ids=name_of)
def test_every_point_trains(point: SpeedPoint, models: Path, tmp_path: Path) -> None:
    from benchmarks.bare_trl import train as train_bare
    from tests.builders.training_runs import train

    make_folder(tmp_path, point, make_model(models, point), local_gpu(this_machine()))
    if point.contender.profile:
        assert train(tmp_path) == 0
    else:
        train_bare(json.loads((tmp_path / "settings.json").read_text(encoding="utf-8")), tmp_path)
    assert speed_of(read_lines(tmp_path / "metrics.jsonl"))["tokens_per_second"] > 0
