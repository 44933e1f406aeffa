"""Measures how fast our program trains, beside plain TRL and the defaults of others, on the same rows and card.

    python benchmarks/training_speed.py [--minutes N] [--out FILE] [--only PATTERN] [--models DIR] [--toy] [--list]
    python benchmarks/training_speed.py --table FILE

Needs a CUDA device (--toy: none), the packages of the training program, pydantic, psutil and nvidia-ml-py; no network.
Each point is a process of its own on a model folder with random weights (--models: where these are kept; a temporary
folder if not named): `python -m training job.json`, planned by one of our profiles, or a bare script with TRL
(bare_trl.py). Points that a file has already are left out, so a grid can be measured in parts. Speeds are those of the
last two thirds of a training, when everything is compiled and warm.

A row is one JSON object a line; what was not measured is absent:

    id, group, contender      the point; those of a group train on the same rows
    settings                  fields of the job, or of SFTConfig, that are not defaults
    gpu, versions             of the machine
    seconds_per_step, tokens_per_step, tokens_per_second    tokens of the data, without padding
    peak_allocated_bytes, peak_reserved_bytes               of the whole training
    gemm_flops_per_second     of this machine, measured before
    gemm_share                of that, what the mathematics of the training needs; recomputing does not count
    seconds                   of the process, imports and all
    error                     one sentence in place of the measurements
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

from benchmarks.measure_memory import MAX_LOG_CHARACTERS, failed, is_final
from benchmarks.memory_scores import read_rows
from benchmarks.speed_grid import GRID, ROOT, Point, make_folder, make_model
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
"""A point that takes longer hangs: compiling the layers of a large model takes a minute or two."""
SILENT = {"TRL_EXPERIMENTAL_SILENCE": "1", "TAILOR_SAVES_NOTHING": "1"}
WIDTH = 18
HEAD = "  ms/step  tokens/step  tokens/s    GiB  of GEMM    ours"


class TimeIsOver(Exception):
    """A point was not finished in its time."""


def measure(
    point: Point, model: Path, gpu: Gpu, gemm: float, limit_seconds: float = math.inf
) -> Row:
    """The row of one point, trained in a new process."""
    with tempfile.TemporaryDirectory(prefix="training-speed-") as name:
        folder, began = Path(name), time.monotonic()
        settings = make_folder(folder, point, model, gpu)
        row = {"id": point.id, "group": point.group, "contender": point.contender.name}
        row |= {
            "settings": {key: value for key, value in settings.items() if key != "model"},
            "gpu": gpu.name,
        }
        try:
            exit_code = _train(folder, point, began + limit_seconds)
        except TimeIsOver:
            return row | failed(folder, f"Not finished in {time.monotonic() - began:.0f} s.")
        row["seconds"] = round(time.monotonic() - began, 1)
        said = _read_json(folder / "status.json") | _read_json(folder / "result.json")
        if exit_code:
            last = _last_line(folder / "log.txt")
            return row | failed(folder, said.get("error") or f"exit code {exit_code}: {last}")
        kept = ("versions", "peak_allocated_bytes", "peak_reserved_bytes")
        row |= {key: said[key] for key in kept if said.get(key)} | speed_of(
            read_lines(folder / "metrics.jsonl")
        )
        row["gemm_flops_per_second"] = round(gemm)
        row["gemm_share"] = row["tokens_per_second"] * flops_per_token(point) / gemm
        return row


def speed_of(lines: Sequence[Row]) -> Row:
    """Seconds and tokens a step, by the lines of a training that come after its first third."""
    lines = [line for line in lines if "num_tokens" in line]
    first, last = lines[math.ceil(WARM_UP_SHARE * len(lines)) - 1], lines[-1]
    steps, seconds = last["step"] - first["step"], last["time"] - first["time"]
    tokens = last["num_tokens"] - first["num_tokens"]
    return {
        "seconds_per_step": seconds / steps,
        "tokens_per_step": tokens / steps,
        "tokens_per_second": tokens / seconds,
    }


def flops_per_token(point: Point) -> float:
    """What the mathematics of a token of a point takes, whoever computes it."""
    job = JobSpec.parse({"model": "m", "method": point.method, "max_length": point.rows.max_length})
    return model_flops_per_token(job, point.shape, point.mean_tokens)


def _train(folder: Path, point: Point, deadline: float) -> int:
    """Runs a point's program in its folder until it has trained. Returns its exit code. Raises TimeIsOver."""
    program = (
        ["-m", "training", "job.json"] if point.contender.profile else [str(BARE), "settings.json"]
    )
    with started([sys.executable, *program], folder, hides_gpu=point.is_toy) as process:
        while process.poll() is None:
            if _read_json(folder / "status.json").get("phase") == "save":
                return 0  # a large model would take minutes to write
            if time.monotonic() > deadline:
                raise TimeIsOver
            time.sleep(SECONDS_BETWEEN_LOOKS)
        return process.returncode


@contextmanager
def started(
    command: Sequence[str], folder: Path, hides_gpu: bool, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A program that runs in a folder, and is ended with the block at the latest."""
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if hides_gpu else {}
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **SILENT, **hidden, **environment}
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


def gemm_rate(hides_gpu: bool) -> float:
    """Floating-point operations per second of this machine, measured in a process that is gone afterwards."""
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if hides_gpu else {}
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "gemm_rate.py")],
        env={**os.environ, **hidden},
        capture_output=True,
        check=True,
        text=True,
    )
    return float(done.stdout)


def measure_grid(
    points: Sequence[Point], gpu: Gpu, options: argparse.Namespace, models: Path
) -> list[Row]:
    """Measures what a file does not have yet, and adds a row to it for each point. Returns all rows of the points."""
    end, rows = (
        time.monotonic() + 60 * options.minutes,
        read_rows(options.out) if options.out else {},
    )
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
        print(
            f"{point.id}: {row.get('error') or '{:,.0f} tokens/s'.format(row['tokens_per_second'])}",
            flush=True,
        )
    return [rows[point.id] for point in points if point.id in rows]


def _measured(point: Point, gpu: Gpu, gemm: float, models: Path, end: float) -> Row:
    """The row of a point, whatever happens: one that cannot be measured leaves the others be."""
    try:
        model = make_model(models, point)
        left = end - time.monotonic()
        row = measure(point, model, gpu, gemm, min(left, PATIENCE_SECONDS))
        hangs = (
            "error" in row and left > PATIENCE_SECONDS and row["error"].startswith("Not finished")
        )
        return row | ({"error": f"It hangs: {row['error']}"} if hangs else {})
    except Exception as error:
        named = {"id": point.id, "group": point.group, "contender": point.contender.name}
        return named | {
            "error": f"{type(error).__name__}: {error}",
            "log_tail": traceback.format_exc()[-MAX_LOG_CHARACTERS:],
        }


def print_table(rows: Iterable[Row]) -> None:
    """The rows by group, each beside our fastest."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row)
    for group, members in groups.items():
        print(f"\n{group}\n{'':{WIDTH}}{HEAD}")
        ours = next(
            (row["tokens_per_second"] for row in members if "tokens_per_second" in row), math.nan
        )
        for row in members:
            print(f"{row['contender']:{WIDTH}}{_cells(row, ours)}")


def _cells(row: Mapping[str, Any], ours: float) -> str:
    if "error" in row:
        return f"  {row['error']}"
    peak = (
        f"{row['peak_reserved_bytes'] / GIB:7.1f}" if "peak_reserved_bytes" in row else f"{'-':>7}"
    )
    return (
        f"{1000 * row['seconds_per_step']:9.0f}{row['tokens_per_step']:13,.0f}{row['tokens_per_second']:10,.0f}{peak}"
        f"{row['gemm_share']:9.1%}{ours / row['tokens_per_second']:7.2f}x"
    )


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "nothing was said"


def read_lines(path: Path) -> list[Row]:
    """The objects of a file with one a line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _read_json(path: Path) -> Row:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def main() -> int:
    """Read the flags, measure, print the table. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="begin no point after so many minutes"
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
    options = parser.parse_args()
    points = [point.as_toy if options.toy else point for point in GRID]
    points = [point for point in points if re.search(options.only, point.id, re.IGNORECASE)]
    if options.list:
        print("\n".join(point.id for point in points))
        return 0
    if options.table:
        print_table(read_rows(options.table).values())
        return 0
    machine = this_machine()
    if not (machine.gpus or options.toy):
        print(
            f"No GPU: {machine.no_gpu_reason}. With --toy the grid runs on the processor.",
            file=sys.stderr,
        )
        return 2
    gpu = local_gpu(dataclasses.replace(machine, gpus=()) if options.toy else machine)
    with tempfile.TemporaryDirectory(prefix="models-") as temporary:
        print_table(measure_grid(points, gpu, options, options.models or Path(temporary)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
