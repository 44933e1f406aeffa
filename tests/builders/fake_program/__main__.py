"""Stand-in for the training program: writes the same files quickly. Seeds set its faults."""

import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import psutil

from .faults import (
    CRASH_AT_STEP_3,
    DIE_SILENTLY,
    DISK_FULL,
    DIVERGED,
    EVALUATED,
    GRANDCHILDREN,
    HANG,
    KILLED,
    LOST_CARD,
    NEVER_END,
    NOT_A_NUMBER,
    SLOW_TO_EXIT,
    SLOW_TO_SAVE,
    TORN,
)

STEPS, SECONDS_PER_STEP, FAULT_STEP = 20, 0.05, 3
ENDLESS = {NEVER_END, GRANDCHILDREN, SLOW_TO_SAVE, SLOW_TO_EXIT}
SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
stopping = False


def on_terminate(*_: object) -> None:
    global stopping
    stopping = True


def boot_id() -> str:
    path = pathlib.Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else str(psutil.boot_time())


def write_status(**fields: object) -> None:
    process = psutil.Process()
    identity = {"pid": process.pid, "pid_start_time": process.create_time(), "boot_id": boot_id()}
    beside = pathlib.Path(".status.json")
    beside.write_text(json.dumps({**identity, "max_steps": STEPS, "error": None, **fields}))
    beside.replace("status.json")


def add_metrics(line: str) -> None:
    with pathlib.Path("metrics.jsonl").open("a") as file:
        file.write(line)


def die_silently() -> None:
    print("killed by the weather", flush=True)
    os._exit(9)


def hang() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    add_metrics('{"step": 4, "lo')
    time.sleep(600)


def leave_grandchildren() -> None:
    """Start one process in this session, one in another, and one whose parent has ended."""
    start = f"subprocess.Popen({SLEEP!r}, stdout=subprocess.DEVNULL)"
    command = [sys.executable, "-c", f"import subprocess; print({start}.pid)"]
    orphan = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    pids = [
        subprocess.Popen(SLEEP).pid,
        subprocess.Popen(SLEEP, start_new_session=True).pid,
        int(orphan.stdout),
    ]
    pathlib.Path("grandchildren.json").write_text(json.dumps({"pids": pids}))


def fail(**fields: object) -> None:
    write_status(state="failed", step=FAULT_STEP, **fields)
    sys.exit(1)


FAULTS: dict[int, Callable[[], object]] = {
    CRASH_AT_STEP_3: lambda: fail(
        error="The GPU ran out of memory in the backward pass.",
        cause="out_of_gpu_memory",
        device_capacity_bytes=2**33,
    ),
    DISK_FULL: lambda: fail(
        error="The disk is full: nothing more could be written while saving.", cause="disk_full"
    ),
    DIVERGED: lambda: fail(
        error="The training has diverged: the loss is not a number.", cause="diverged"
    ),
    LOST_CARD: lambda: fail(
        error="The GPU or its driver failed: GPU is lost", cause="gpu_failed", updated=time.time()
    ),
    DIE_SILENTLY: die_silently,
    KILLED: lambda: os.kill(os.getpid(), signal.SIGKILL),
    HANG: hang,
    GRANDCHILDREN: leave_grandchildren,
    TORN: lambda: add_metrics('\0\0\0\n{"step": 3.5, "loss": \n[]\n'),
    NOT_A_NUMBER: lambda: add_metrics(
        '{"step": 3.5, "loss": NaN}\n{"step": 3.6, "nonfinite": ["loss"]}\n'
    ),
}
"""Seed -> what happens after step 3."""


def main() -> int:
    signal.signal(signal.SIGTERM, on_terminate)
    job = json.loads(pathlib.Path(sys.argv[1]).read_text())
    seed = job["seed"]
    started = time.time()

    def report(**fields: object) -> None:
        write_status(started=started, updated=time.time(), **fields)

    report(state="starting", step=0)
    sample = {"step": 0, "prompt": "Who?", "answer": "Nobody."}
    pathlib.Path("samples.jsonl").write_text(json.dumps(sample) + "\n")
    num_steps = 10**9 if seed in ENDLESS else STEPS
    for step in range(1, num_steps + 1):
        time.sleep(SECONDS_PER_STEP)
        row = {"step": step, "time": time.time() - started, "loss": 4 / step}
        add_metrics(json.dumps(row) + "\n")
        if seed == EVALUATED and step % 5 == 0:
            loss = abs(math.log10(job["learning_rate"]) + 3) + 1 / step
            add_metrics(json.dumps({"step": step, "eval_loss": loss}) + "\n")
        report(state="running", phase="train", step=step)
        if step == FAULT_STEP and seed in FAULTS:
            FAULTS[seed]()
        if stopping or pathlib.Path("stop").exists():
            report(state="stopping", phase="save", step=step)
            time.sleep(1.5 if seed == SLOW_TO_SAVE else 0)
            checkpoint = pathlib.Path(f"checkpoints/checkpoint-{step}")
            checkpoint.mkdir(parents=True, exist_ok=True)
            (checkpoint / "manifest.json").write_text("{}")
            report(state="stopped", step=step)
            time.sleep(600 if seed == SLOW_TO_EXIT else 0)
            return 130
    report(state="finished", step=STEPS, phase_peak_bytes={"load": 2**30})
    return 0


sys.exit(main())
