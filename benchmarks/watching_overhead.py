"""Measures what watching costs: our training program beside a bare script with TRL, on the same job, on the processor.

    python benchmarks/watching_overhead.py [--rounds N] [--steps N] [--logging-steps N] [--json]

The two take turns, so that whatever else the machine does meets both. A round compares the seconds per step of both,
after a first fifth of warming up: by the clock, and of processor time, which others on the machine disturb less. Both
log alike; samples, evaluations and checkpoints are off. Asserts nothing.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import psutil

from benchmarks.memory_grid import LLAMA_1B
from benchmarks.memory_grid import Point as MemoryPoint
from benchmarks.memory_grid import job as memory_job
from benchmarks.memory_inputs import write_model, write_rows
from benchmarks.speed_grid import LORA, make_run_folder
from benchmarks.training_speed import BARE, started
from core.job import JobSpec
from core.methods import STAGES

SIZES: Mapping[str, object] = MappingProxyType(
    {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 6, "vocab_size": 2048}
)
"""Of the model: a step of ROWS takes about a tenth of a second, as a step of a small model on a large card does."""
STEADY = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**32)}
"""For both: freed memory is kept. Else 25,000 page faults a step, more or fewer as the heap happens to lie, make a run
5 % slower or faster than the next."""
NUM_ROWS, LENGTH, BATCH = 256, 128, 8
WARM_UP_SHARE = 0.2
SECONDS_BETWEEN_LOOKS = 0.005


@dataclass(frozen=True)
class Pace:
    """Seconds per step."""

    clock: float
    processor: float


def measure(program: Sequence[str], folder: Path, num_steps: int) -> Pace:
    """Runs a program in a folder; its pace by the lines of metrics.jsonl. Raises RuntimeError if it fails."""
    seen: list[tuple[int, float, float]] = []  # step, the clock, the processor time
    with started([sys.executable, *program], folder, hides_gpu=True, **STEADY) as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            step = last_step(folder / "metrics.jsonl")
            if step > (seen[-1][0] if seen else 0):
                used = watched.cpu_times()
                seen.append((step, time.perf_counter(), used.user + used.system))
            time.sleep(SECONDS_BETWEEN_LOOKS)
        if process.returncode:
            raise RuntimeError((folder / "log.txt").read_text(encoding="utf-8", errors="replace")[-2000:])
    first, last = next(each for each in seen if each[0] >= WARM_UP_SHARE * num_steps), seen[-1]
    steps = last[0] - first[0]
    return Pace(clock=(last[1] - first[1]) / steps, processor=(last[2] - first[2]) / steps)


def last_step(metrics: Path) -> int:
    """The step of the last whole line, 0 before there is one."""
    lines = metrics.read_bytes().split(b"\n")[:-1] if metrics.exists() else []
    return int(json.loads(lines[-1])["step"]) if lines else 0


def make_folders(folder: Path, num_steps: int, logging_steps: int) -> dict[str, Path]:
    """A run folder of our program and a folder of the bare script, for the same job."""
    config = MemoryPoint(LLAMA_1B, memory_job("lora", BATCH, LENGTH), is_toy=True).config | SIZES
    write_model(folder / "model", config | {"architectures": ["LlamaForCausalLM"]}, has_holes=False)
    same = {
        "max_length": LENGTH,
        "max_steps": num_steps,
        "logging_steps": logging_steps,
        "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": False,
        "learning_rate": 1e-4,
    }
    job = JobSpec.parse(
        {
            "model": str(folder / "model"),
            "dataset": "data/train.jsonl",
            "assistant_only_loss": False,
            "eval_fraction": 0,
            "num_samples": 0,
            "save_steps": 10**6,
            **same,
        }
    )
    folders = {"tailor": folder / "tailor", "bare": folder / "bare"}
    for each in folders.values():
        write_rows(each / "data" / "train.jsonl", (LENGTH,) * NUM_ROWS, STAGES["sft"])
    make_run_folder(folders["tailor"], job)
    settings: dict[str, Any] = {
        "model": job.model,
        "rows": str(folders["bare"] / "data" / "train.jsonl"),
        "config": {**same, "bf16": False, "warmup_steps": job.warmup_ratio, "lr_scheduler_type": "cosine"},
        "load": {"dtype": "float32"},
        "lora": dict(LORA),
        "quantization": None,
    }
    (folders["bare"] / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    return folders


def compare(num_steps: int, logging_steps: int) -> dict[str, Pace]:
    """Both, one after the other, in fresh folders."""
    with tempfile.TemporaryDirectory(prefix="watching-overhead-") as name:
        folders = make_folders(Path(name), num_steps, logging_steps)
        return {
            "bare": measure([str(BARE), "settings.json"], folders["bare"], num_steps),
            "tailor": measure(["-m", "training", "job.json"], folders["tailor"], num_steps),
        }


def overheads(rounds: Sequence[Mapping[str, Pace]]) -> dict[str, list[float]]:
    """What ours takes more than the bare script, as a share, of each round."""
    return {
        "clock": [each["tailor"].clock / each["bare"].clock - 1 for each in rounds],
        "processor": [each["tailor"].processor / each["bare"].processor - 1 for each in rounds],
    }


def main() -> int:
    """Read the flags, take turns, print. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5, help="how often both have their turn")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps of a turn")
    parser.add_argument("--logging-steps", type=int, default=1, help="steps between two lines that both log")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    rounds = []
    for number in range(options.rounds):
        rounds.append(compare(options.steps, options.logging_steps))
        if not options.json:
            shown = ", ".join(
                f"{name} {1000 * pace.clock:.1f} ms a step ({1000 * pace.processor:.1f} of the processor)"
                for name, pace in rounds[-1].items()
            )
            print(f"round {number + 1}: {shown}", flush=True)
    found = overheads(rounds)
    if options.json:
        print(json.dumps(found))
        return 0
    for name, shares in found.items():
        print(f"{name:10}  {statistics.median(shares):+7.2%} median  {min(shares):+7.2%} to {max(shares):+7.2%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
