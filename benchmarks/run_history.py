"""Time a long history: list thousands of runs, open a run of a million steps, poll it.

    python benchmarks/run_history.py [--runs 10000] [--steps 1000000]

Prints a table; asserts nothing.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from core import runs
from core.job import JobSpec
from core.runs import Home, edits, listing

STATUS = {
    "state": "finished",
    "pid": 4242,
    "pid_start_time": 1.5,
    "boot_id": "another",
    "started": 1.7e9,
    "updated": 1.7e9 + 3600,
    "step": 500,
    "max_steps": 500,
    "phase_peak_bytes": {
        "load": 2**33,
        "forward": 2**34,
        "backward": 2**34,
        "optimizer_step": 2**34,
        "save": 2**33,
    },
    "peak_allocated_bytes": 2**34,
    "versions": {"torch": "2.13.0", "transformers": "5.23.0", "trl": "1.16.0", "peft": "0.21.2"},
}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=1_000_000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Home.find(folder)
        make_history(home, asked.runs)
        show(f"list {asked.runs:,} runs, first time", lambda: runs.listing.list_runs(home))
        time.sleep(2.5)
        runs.listing.list_runs(home)
        show("list them again, nothing changed", lambda: runs.listing.list_runs(home))
        show("fingerprint of the list", lambda: listing.list_fingerprint(home))
        show("search them", lambda: listing.search(runs.listing.list_runs(home), "qlora finished"))
        show("all of them as JSON", lambda: [run.to_json() for run in runs.listing.list_runs(home)])
        edits.annotate(home, runs.listing.list_runs(home)[0].id, title="one changed")
        show("list them, one was annotated", lambda: runs.listing.list_runs(home))

        run = runs.listing.list_runs(home)[0]
        write_metrics(run.folder, asked.steps)
        size = (run.folder / "metrics.jsonl").stat().st_size / 2**20
        show(f"open {asked.steps:,} steps ({size:.0f} MiB)", lambda: run.curves())
        show("a tick, nothing new", lambda: run.curves())
        with (run.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row(asked.steps + 1)) + "\n")
        show("a tick, one new step", lambda: run.curves())
    print(f"memory of this process at its highest: {peak_mib():.0f} MiB")
    return 0


def make_history(home: Home, num_runs: int) -> None:
    """Create folders of ended runs with as few files as possible."""
    for number in range(num_runs):
        method = "qlora" if number % 3 else "lora"
        folder = home.runs / f"20260101-{number:06d}-demo-{method}"
        folder.mkdir()
        job = JobSpec.parse({"method": method, "seed": number, "lora_r": 8})
        (folder / "job.json").write_text(job.to_json())
        (folder / "status.json").write_text(json.dumps(STATUS))
        (folder / "metrics.jsonl").write_text(
            "".join(json.dumps(row(step)) + "\n" for step in range(1, 21))
        )


def row(step: int) -> dict[str, float]:
    """Return a row of metrics.jsonl with as many keys as the training program writes."""
    return {
        "step": step,
        "epoch": step / 1e6,
        "time": step * 0.123,
        "loss": 2.3456789 + step % 7,
        "grad_norm": 1.2345678,
        "learning_rate": 2e-4 * (1 - step / 1e9),
        "mean_token_accuracy": 0.5612345,
        "num_tokens": step * 1000,
        "tokens_per_second": 3000.123456,
        "memory_allocated_bytes": 12_345_678_901,
        "memory_reserved_bytes": 22_345_678_901,
        "memory_peak_bytes": 22_222_222_222,
        "device_used_bytes": 23_333_333_333,
    }


def write_metrics(folder: Path, num_steps: int) -> None:
    """Write a metrics.jsonl of that many rows."""
    with (folder / "metrics.jsonl").open("w") as file:
        file.writelines(json.dumps(row(step)) + "\n" for step in range(1, num_steps + 1))


def show(what: str, measured: Callable[[], Any]) -> None:
    """Print how long one call takes: wall time and processor time."""
    clock, work = time.perf_counter(), time.process_time()
    measured()
    clock, work = 1000 * (time.perf_counter() - clock), 1000 * (time.process_time() - work)
    print(f"{what:45} {clock:10,.1f} ms {work:10,.1f} ms of work", flush=True)


def peak_mib() -> float:
    """Return the highest resident memory of this process."""
    memory = psutil.Process().memory_info()
    if hasattr(memory, "peak_wset"):
        return memory.peak_wset / 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


if __name__ == "__main__":
    sys.exit(main())
