"""Measure how fast our program trains, compared with plain TRL and with other tools' settings.

    python benchmarks/training_speed.py [--minutes N] [--out FILE] [--only PATTERN]
        [--models DIR] [--toy] [--list]
    python benchmarks/training_speed.py --table FILE

Needs a CUDA device (--toy: none), the packages of the training program, pydantic, psutil and
nvidia-ml-py; no network. Each point is one process: either `python -m training job.json`, planned
by one of our profiles, or a short script with TRL (bare_trl.py). Models have random weights and are
written into the folder --models, else into a temporary one. A point that --out already has is not
measured again, so a grid can be measured in parts. Speeds are those of the last two thirds of a
training, after compiling and warming up.

A row is one JSON object a line; what was not measured is absent:

    id, group, contender      the point; points of one group train on the same rows
    settings                  fields of the job, or of SFTConfig, that differ from the defaults
    gpu, versions             of the machine
    seconds_per_step
    tokens_per_step, tokens_per_second              tokens of the data, without padding
    peak_allocated_bytes, peak_reserved_bytes       of the whole training
    gemm_flops_per_second     of this machine, measured before
    gemm_share                operations that the model's mathematics needs, without recomputing,
                              as a share of gemm_flops_per_second
    seconds                   of the process, imports included
    error                     one sentence instead of measurements
"""

import argparse
import dataclasses
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measure_memory import MAX_LOG_CHARACTERS, TimeIsOver, failed, is_final
from benchmarks.memory_scores import read_rows
from benchmarks.speed_grid import GRID, ROOT, SpeedPoint, make_folder, make_model
from core.device import local_gpu, this_machine
from core.job import JobSpec
from core.models import Gpu
from core.speed import model_flops_per_token

Row = dict[str, Any]

GIB = 2**30
BARE = ROOT / "benchmarks" / "bare_trl.py"
WARM_UP_SHARE = 1 / 3
SECONDS_BETWEEN_LOOKS = 0.2
PATIENCE_SECONDS = 240.0
"""A point that takes longer is stuck. Compiling a large model takes 1 to 2 minutes."""
SILENT = {"TRL_EXPERIMENTAL_SILENCE": "1", "TAILOR_SAVES_NOTHING": "1"}
COPIED_FROM_RESULT = ("versions", "peak_allocated_bytes", "peak_reserved_bytes")
WIDTH = 18
HEAD = "  ms/step  tokens/step  tokens/s    GiB  of GEMM    ours"


def measure(
    point: SpeedPoint, model: Path, gpu: Gpu, gemm: float, limit_seconds: float = math.inf
) -> Row:
    """Return the row of one point, trained in a new process."""
    with tempfile.TemporaryDirectory(prefix="training-speed-") as name:
        folder, began = Path(name), time.monotonic()
        settings = make_folder(folder, point, model, gpu)
        settings.pop("model", None)
        row = _names(point) | {"settings": settings, "gpu": gpu.name}
        try:
            exit_code = _train(folder, point, began + limit_seconds)
        except TimeIsOver:
            return row | failed(folder, f"Not finished in {time.monotonic() - began:.0f} s.")
        row["seconds"] = round(time.monotonic() - began, 1)
        result = _read_json(folder / "status.json") | _read_json(folder / "result.json")
        if exit_code:
            last = _last_line(folder / "log.txt")
            return row | failed(folder, result.get("error") or f"exit code {exit_code}: {last}")
        row |= {key: result[key] for key in COPIED_FROM_RESULT if result.get(key)}
        row |= speed_of(read_lines(folder / "metrics.jsonl"))
        row["gemm_flops_per_second"] = round(gemm)
        row["gemm_share"] = row["tokens_per_second"] * flops_per_token(point) / gemm
        return row


def _names(point: SpeedPoint) -> Row:
    """Return the part of a row that is known before the training."""
    return {"id": point.id, "group": point.group, "contender": point.contender.name}


def speed_of(lines: Sequence[Row]) -> Row:
    """Return seconds and tokens per step, from the logged lines after the first third."""
    lines = [line for line in lines if "num_tokens" in line]
    first, last = lines[math.ceil(WARM_UP_SHARE * len(lines)) - 1], lines[-1]
    steps = last["step"] - first["step"]
    seconds = last["time"] - first["time"]
    tokens = last["num_tokens"] - first["num_tokens"]
    return {
        "seconds_per_step": seconds / steps,
        "tokens_per_step": tokens / steps,
        "tokens_per_second": tokens / seconds,
    }


def flops_per_token(point: SpeedPoint) -> float:
    """Return the operations that a point's model needs for one token, without recomputing."""
    job = JobSpec.parse({"model": "m", "method": point.method, "max_length": point.rows.max_length})
    return model_flops_per_token(job, point.shape, point.mean_tokens)


def _train(folder: Path, point: SpeedPoint, deadline: float) -> int:
    """Run a point's program in its folder until it has trained. Return its exit code.

    Raises TimeIsOver.
    """
    program = [str(BARE), "settings.json"]
    if point.contender.profile:
        program = ["-m", "training", "job.json"]
    with started([sys.executable, *program], folder, hides_gpu=point.is_toy) as process:
        while process.poll() is None:
            if _read_json(folder / "status.json").get("phase") == "save":
                return 0  # writing a large model would take minutes
            if time.monotonic() > deadline:
                raise TimeIsOver
            time.sleep(SECONDS_BETWEEN_LOOKS)
        return process.returncode


@contextmanager
def started(
    command: Sequence[str], folder: Path, hides_gpu: bool, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program in a folder, and end it with the block at the latest."""
    offline = {"HF_HUB_OFFLINE": "1", **SILENT}
    environment = {**os.environ, **offline, **_visible_devices(hides_gpu), **environment}
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _visible_devices(hides_gpu: bool) -> dict[str, str]:
    """Return the environment variable that hides all GPUs, or nothing."""
    return {"CUDA_VISIBLE_DEVICES": ""} if hides_gpu else {}


def gemm_rate(hides_gpu: bool) -> float:
    """Return floating-point operations per second of this machine.

    A child process measures them, so that none of its memory is in use afterwards.
    """
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "gemm_rate.py")],
        env={**os.environ, **_visible_devices(hides_gpu)},
        capture_output=True,
        check=True,
        text=True,
    )
    return float(done.stdout)


def measure_grid(
    points: Sequence[SpeedPoint], gpu: Gpu, options: argparse.Namespace, models: Path
) -> list[Row]:
    """Measure the points that a file does not have yet, and add a row to it for each.

    Returns the rows of all points, old and new.
    """
    end = time.monotonic() + 60 * options.minutes
    rows = read_rows(options.out) if options.out else {}
    gemm = gemm_rate(options.toy)
    print(f"{gpu.name}: {gemm / 1e12:.1f} TFLOP/s of matrix products", flush=True)
    for point in points:
        if time.monotonic() > end or (point.id in rows and is_final(rows[point.id])):
            continue
        row = _measured(point, gpu, gemm, models, end)
        rows[point.id] = row
        if options.out:
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        result = row["error"] if "error" in row else f"{row['tokens_per_second']:,.0f} tokens/s"
        print(f"{point.id}: {result}", flush=True)
    return [rows[point.id] for point in points if point.id in rows]


def _measured(point: SpeedPoint, gpu: Gpu, gemm: float, models: Path, end: float) -> Row:
    """Return the row of a point. One that cannot be measured must not stop the others."""
    try:
        model = make_model(models, point)
        left = end - time.monotonic()
        row = measure(point, model, gpu, gemm, min(left, PATIENCE_SECONDS))
    except Exception as error:
        return _names(point) | {
            "error": f"{type(error).__name__}: {error}",
            "log_tail": traceback.format_exc()[-MAX_LOG_CHARACTERS:],
        }
    if left > PATIENCE_SECONDS and row.get("error", "").startswith("Not finished"):
        row["error"] = f"It hangs: {row['error']}"
    return row


def print_table(rows: Iterable[Row]) -> None:
    """Print the rows by group, each compared with our fastest."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row)
    for group, members in groups.items():
        print(f"\n{group}\n{'':{WIDTH}}{HEAD}")
        speeds = [row["tokens_per_second"] for row in members if "tokens_per_second" in row]
        ours = speeds[0] if speeds else math.nan  # our fastest is the first contender of a group
        for row in members:
            print(f"{row['contender']:{WIDTH}}{_cells(row, ours)}")


def _cells(row: Mapping[str, Any], ours: float) -> str:
    if "error" in row:
        return f"  {row['error']}"
    tokens_per_second = row["tokens_per_second"]
    peak = f"{'-':>7}"
    if "peak_reserved_bytes" in row:
        peak = f"{row['peak_reserved_bytes'] / GIB:7.1f}"
    return (
        f"{1000 * row['seconds_per_step']:9.0f}{row['tokens_per_step']:13,.0f}"
        f"{tokens_per_second:10,.0f}{peak}"
        f"{row['gemm_share']:9.1%}{ours / tokens_per_second:7.2f}x"
    )


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "it printed nothing"


def read_lines(path: Path) -> list[Row]:
    """Return the objects of a file that has one a line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _read_json(path: Path) -> Row:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="start no point after so many minutes"
    )
    parser.add_argument("--out", type=Path, help="rows are added to this file")
    parser.add_argument(
        "--only", default="", help="points with this regular expression in their name"
    )
    parser.add_argument(
        "--models", type=Path, help="where models with random weights are kept: 20 GB"
    )
    parser.add_argument(
        "--toy", action="store_true", help="every point at toy size on the processor"
    )
    parser.add_argument("--list", action="store_true", help="print the points and measure none")
    parser.add_argument(
        "--table", type=Path, help="print the rows of this file as a table and measure none"
    )
    return parser.parse_args()


def main() -> int:
    """Read the flags, measure, print the table. Returns the exit code."""
    options = _options()
    points = [point.as_toy if options.toy else point for point in GRID]
    points = [point for point in points if re.search(options.only, point.id, re.IGNORECASE)]
    if options.list:
        print("\n".join(point.id for point in points))
        return 0
    if options.table:
        print_table(read_rows(options.table).values())
        return 0
    machine = this_machine()
    if options.toy:
        machine = dataclasses.replace(machine, gpus=())
    elif not machine.gpus:
        reason = f"No GPU: {machine.no_gpu_reason}."
        print(f"{reason} With --toy the grid runs on the processor.", file=sys.stderr)
        return 2
    gpu = local_gpu(machine)
    with tempfile.TemporaryDirectory(prefix="models-") as temporary:
        print_table(measure_grid(points, gpu, options, options.models or Path(temporary)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
