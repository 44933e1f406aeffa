"""Measure the memory of real trainings, on a grid of points, beside the estimate.

    python benchmarks/measure_memory.py [--minutes N] [--out FILE] [--only PATTERN] [--toy] [--list]
    python benchmarks/measure_memory.py --score FILE [--json]

Needs a CUDA device (--toy: none), the packages of the training program, pydantic, psutil and
nvidia-ml-py; no network. Each point is one process, `python -m training job.json`, unchanged, on a
model folder with weights that take no disk space (memory_inputs.write_model). Only the checkpoint
of a large full fine-tuning is not waited for: the process is ended when it begins to save, and the
row has no phase `save`. Points that a file has already are left out, so a grid can be measured in
parts. A point that failed for another reason than memory is tried again, and its last row counts.

A row is one JSON object a line, sizes in bytes; what was not measured is absent:

    id                    the point: model, method, batch x length, and what else is special
    model, config         the preset, and the trained config.json, which may have fewer layers
    job                   every field of the JobSpec
    rows                  padded, equal or varied (memory_grid.Point.rows)
    row_tokens            tokens of each row in the training file
    eval_row_tokens       tokens of each row in the evaluation file
    gpu                   name, capacity_bytes, compute_capability [major, minor], supports_bf16,
                          driver
    versions              package -> version
    num_parameters, num_trainable_parameters
    phase_peak_bytes      load, forward, backward, optimizer_step, eval, save -> allocated, in the
                          first three steps
    peak_allocated_bytes, peak_reserved_bytes     of the whole training
    device_used_bytes     of the process by NVML, else of the device by the driver; highest after a
                          step
    context_bytes         of the process by NVML, less reserved: the CUDA context, and paged
                          optimizer states; absent where NVML does not know the process
    nvml_used_bytes       highest use of the device while it ran, less that before; sampled ten
                          times a second
    seconds               of the process, imports included
    seconds_per_step      median
    num_tokens, loss      tokens trained on; loss of the last step, absent if it is not a number
    steps                 of each step its number and the allocator's allocated, reserved, peak
    error                 one sentence instead of measurements; out of memory is a result, too
    log_tail              with an error: the end of what the program printed
"""

import argparse
import dataclasses
import itertools
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.memory_grid import GRID, Point, toys
from benchmarks.memory_inputs import write_model, write_rows
from benchmarks.memory_scores import METRICS, Row, errors, predict, print_scores, read_rows
from core.device import local_gpu, this_machine
from core.models import Gpu

GIB = 2**30
ROOT = Path(__file__).resolve().parent.parent
MEASURED_DIR = ROOT / "tests" / "measured"
COPIED_FROM_STATUS = (
    "versions",
    "num_parameters",
    "num_trainable_parameters",
    "phase_peak_bytes",
    "peak_allocated_bytes",
    "peak_reserved_bytes",
)
STEP_MEMORY = ("step", "memory_allocated_bytes", "memory_reserved_bytes", "memory_peak_bytes")
FINAL = re.compile("^It hangs|out of (gpu |main )?memory|OutOfMemory", re.IGNORECASE)
"""Errors that another try would not change."""
HOPELESS = 1.1
"""A point whose estimate exceeds the card's capacity by this factor is not tried."""
SECONDS_BETWEEN_CHECKS = 0.1
WIDTH = 92
"""Width of the first column."""
MAX_LOG_CHARACTERS = 20_000

SECONDS_TO_START = 20
"""Python, imports, tokens and the end. Rough, as the next ones: earlier points correct them."""
READ_BYTES_PER_SECOND = 1.5e9
WRITTEN_BYTES_PER_SECOND = 0.5e9
SHARE_OF_FLOPS = 0.25
GENERATION_SLOWDOWN = 100
"""Tokens read at once in the time of one generated token."""
PATIENCE = 4
"""A point that takes this many times longer than expected is stuck."""
MIN_PATIENCE_SECONDS = 120


class TimeIsOver(Exception):
    """Raised if a point was not finished in time."""


def measure(point: Point, gpu: Gpu, limit_seconds: float = math.inf) -> Row:
    """Return the row of one point, trained in a new process."""
    with tempfile.TemporaryDirectory(prefix="measure-memory-") as name:
        folder = make_run_folder(Path(name), point)
        before, began = _device_bytes(), time.monotonic()
        row = asked(point, gpu)
        try:
            exit_code, highest = _train(folder, point, began + limit_seconds)
        except TimeIsOver:
            return row | failed(folder, f"Not finished in {time.monotonic() - began:.0f} s.")
        row["seconds"] = round(time.monotonic() - began, 1)
        status = _read_json(folder / "status.json")
        if exit_code:
            return row | failed(
                folder, status.get("error") or f"The program ended with code {exit_code}."
            )
        row |= _measured_by_steps(folder)
        if point.num_tokens not in (None, row["num_tokens"]):
            return row | failed(
                folder, f"{row['num_tokens']} tokens were trained on, not {point.num_tokens}."
            )
        row |= {name: status[name] for name in COPIED_FROM_STATUS if status.get(name) is not None}
        if not point.saves:
            row["phase_peak_bytes"].pop("save", None)
        if highest > before:
            row["nvml_used_bytes"] = highest - before
        return row


def failed(folder: Path, error: str) -> Row:
    """Return the part of a row that replaces measurements."""
    log = folder / "log.txt"
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    return {"error": error, "log_tail": text[-MAX_LOG_CHARACTERS:]}


def make_run_folder(folder: Path, point: Point) -> Path:
    """Write what the app would write into a run folder, and a model."""
    write_model(folder / "model", point.config, point.has_holes)
    shutil.copytree(
        ROOT / "core" / "training",
        folder / "training",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    write_rows(folder / "data" / "train.jsonl", point.train_tokens(), point.stage)
    if point.evaluates:
        write_rows(folder / "data" / "eval.jsonl", point.eval_tokens(), point.stage)
    (folder / "job.json").write_text(point.job(str(folder / "model")).to_json(), encoding="utf-8")
    return folder


def asked(point: Point, gpu: Gpu) -> Row:
    """Return the part of a row that is known before the training."""
    cards = this_machine().gpus
    return {
        "id": point.id,
        "model": point.model,
        "config": point.config,
        "job": json.loads(point.job(point.model).to_json()),
        "rows": point.rows,
        "row_tokens": point.train_tokens(),
        "eval_row_tokens": point.eval_tokens(),
        "gpu": {
            "name": gpu.name,
            "capacity_bytes": gpu.capacity_bytes,
            "compute_capability": gpu.compute_capability,
            "supports_bf16": gpu.supports_bf16,
            "driver": cards[0].driver if cards else "",
        },
    }


def _train(folder: Path, point: Point, deadline: float) -> tuple[int, int]:
    """Train in a run folder. Return (exit code, highest use of the device in bytes).

    Raises TimeIsOver.
    """
    process, highest = _start(folder, point.is_toy, point.saves), 0
    try:
        while process.poll() is None:
            highest = max(highest, _device_bytes())
            if not point.saves and _read_json(folder / "status.json").get("phase") == "save":
                return 0, highest
            if time.monotonic() > deadline:
                raise TimeIsOver
            time.sleep(SECONDS_BETWEEN_CHECKS)
        return process.returncode, highest
    finally:
        process.kill()
        process.wait()


def _start(folder: Path, hides_gpu: bool, saves: bool) -> subprocess.Popen[bytes]:
    """Start the training program in a run folder, as the app does."""
    environment = {"HF_HUB_OFFLINE": "1"}
    if hides_gpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    if not saves:
        environment["TAILOR_SAVES_NOTHING"] = "1"
    with (folder / "log.txt").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "training", "job.json"],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
        )


def _measured_by_steps(folder: Path) -> Row:
    """Return what metrics.jsonl says: device memory in use, time, tokens, loss."""
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    steps = [line for line in map(json.loads, text.splitlines()) if "num_tokens" in line]
    seconds = [after["time"] - before["time"] for before, after in itertools.pairwise(steps)]
    last = steps[-1]
    row = {
        "device_used_bytes": max(step["device_used_bytes"] for step in steps),
        "seconds_per_step": round(statistics.median(seconds), 3),
        "num_tokens": last["num_tokens"],
        "steps": [{name: step[name] for name in STEP_MEMORY if name in step} for step in steps],
    }
    return row | {name: last[name] for name in ("context_bytes", "loss") if name in last}


def _device_bytes() -> int:
    """Return the bytes in use on the first card now, by any process; 0 without a card."""
    cards = this_machine().gpus
    if not cards:
        return 0
    import pynvml  # which this_machine has started

    handle = pynvml.nvmlDeviceGetHandleByIndex(cards[0].index)
    return int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)


def _read_json(path: Path) -> dict[str, Any]:
    """Return the object in a file that is always replaced as a whole, {} before it exists."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


Measure = Callable[[Point, Gpu, float], Row]
"""Returns the row of a point, within so many seconds."""


def measure_grid(
    points: Sequence[Point], gpu: Gpu, out: Path | None, minutes: float, measure: Measure = measure
) -> None:
    """Measure points that a file does not have yet; add a row for each and print it."""
    end = time.monotonic() + 60 * minutes
    done = read_rows(out) if out else {}
    spent = expected = float(SECONDS_TO_START)
    metrics = "".join(f"{metric:>18}" for metric in METRICS)
    print(f"{'point':{WIDTH}}{metrics}{'s/step':>9}{'s':>7}")
    for point in points:
        if point.id in done and is_final(done[point.id]):
            continue
        needed, left = expected_seconds(point, gpu) * spent / expected, end - time.monotonic()
        if reason := _reason_to_skip(point, gpu, needed, left):
            print(f"{point.id:{WIDTH}}  {reason}", flush=True)
            continue
        began, patience = time.monotonic(), max(PATIENCE * needed, MIN_PATIENCE_SECONDS)
        row = _measured(measure, point, gpu, min(left, patience))
        if "error" in row and time.monotonic() - began > patience:
            row["error"] = f"It hangs: {row['error']}"
        spent += time.monotonic() - began
        expected += expected_seconds(point, gpu)
        if out:
            _append(out, row)
        print(_line(row), flush=True)


def _measured(measure: Measure, point: Point, gpu: Gpu, limit_seconds: float) -> Row:
    """Return the row of a point. One that cannot be measured must not stop the others."""
    try:
        return measure(point, gpu, limit_seconds)
    except Exception as error:
        trace = traceback.format_exc()
        return asked(point, gpu) | {
            "error": f"{type(error).__name__}: {error}",
            "log_tail": trace[-MAX_LOG_CHARACTERS:],
        }


def _reason_to_skip(point: Point, gpu: Gpu, needed_seconds: float, left_seconds: float) -> str:
    """Return why a point is not started, "" if it is."""
    total_bytes = predict(asked(point, gpu)).total_bytes
    if total_bytes > HOPELESS * gpu.capacity_bytes:
        return f"left out: needs about {total_bytes / GIB:.1f} GiB"
    return f"left out: needs about {needed_seconds:.0f} s" if needed_seconds > left_seconds else ""


def _line(row: Row) -> str:
    """Return a row as text: measured GiB and the error of the estimate by metric."""
    if "error" in row:
        return f"{row['id']:{WIDTH}}  {row['error']}"
    found = errors(row)
    cells = (
        f"{row[measured] / GIB:9.3f}{found[metric]:+9.2%}" if metric in found else f"{'-':>18}"
        for metric, (measured, _) in METRICS.items()
    )
    return f"{row['id']:{WIDTH}}{''.join(cells)}{row['seconds_per_step']:9.3f}{row['seconds']:7.1f}"


def _append(out: Path, row: Row) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


def is_final(row: Row) -> bool:
    """Return False if the training failed for a reason that may be gone next time."""
    return "error" not in row or bool(FINAL.search(row["error"]))


def expected_seconds(point: Point, gpu: Gpu) -> float:
    """Estimate how long a point takes: start, reading weights, computing, writing a model."""
    num_parameters = point.shape.num_parameters
    num_tokens = point.num_tokens or GENERATION_SLOWDOWN * sum(point.train_tokens())
    computing = 8 * num_parameters * num_tokens / (SHARE_OF_FLOPS * gpu.flops)
    saved_bytes = 8 * num_parameters if point.fields["method"] == "full" and point.saves else 0
    reading = 2 * num_parameters / READ_BYTES_PER_SECOND
    return SECONDS_TO_START + reading + computing + saved_bytes / WRITTEN_BYTES_PER_SECOND


def print_list(points: Iterable[Point], gpu: Gpu, done: Mapping[str, Row]) -> None:
    """Print the points with their estimates, and which are measured."""
    print(f"{'point':{WIDTH}}{'GiB':>8}{'s':>7}")
    for point in points:
        total_bytes = predict(asked(point, gpu)).total_bytes
        state = "measured" if point.id in done and is_final(done[point.id]) else ""
        seconds = expected_seconds(point, gpu)
        print(f"{point.id:{WIDTH}}{total_bytes / GIB:8.2f}{seconds:7.0f}  {state}".rstrip())


def main() -> int:
    """Read the flags, measure or list or score. Returns the exit code."""
    options = _options()
    if options.score:
        print_scores(read_rows(options.score).values(), options.json)
        return 0
    machine = this_machine()
    if not (machine.gpus or options.toy or options.list):
        reason = f"No GPU: {machine.no_gpu_reason}."
        print(f"{reason} With --toy the grid runs on the processor.", file=sys.stderr)
        return 2
    if options.toy:
        machine = dataclasses.replace(machine, gpus=())
    gpu = local_gpu(machine)
    out = options.out
    if out is None and not options.toy:
        out = MEASURED_DIR / f"{re.sub('[^a-z0-9]+', '-', gpu.name.lower())}.jsonl"
    grid = toys() if options.toy else GRID
    points = [point for point in grid if re.search(options.only, point.id, re.IGNORECASE)]
    if options.list:
        print_list(points, gpu, read_rows(out) if out else {})
    else:
        measure_grid(points, gpu, out, options.minutes)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--minutes", type=float, default=math.inf, help="stop within so many minutes")
    add("--out", type=Path, help="add rows to this file; default tests/measured/<gpu>.jsonl")
    add(
        "--only",
        default="",
        help="points with this regular expression in their name; '^(?!.*paged)' leaves out those "
        "in managed memory",
    )
    add("--toy", action="store_true", help="every point at toy size on the processor; see --out")
    add("--list", action="store_true", help="print the points and measure none")
    add("--score", type=Path, help="print the errors of the estimate on the rows of this file")
    add("--json", action="store_true", help="with --score: print one JSON object")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
