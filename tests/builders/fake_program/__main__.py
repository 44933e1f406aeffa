"""Stands in for the training program: writes the same files in no time. Its faults are set by the job's seed."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import psutil

STEPS, SECONDS_PER_STEP, FAULT_STEP = 20, 0.05, 3
CRASH_AT_STEP_3, DIE_SILENTLY, NEVER_END = 1001, 1002, 1003
KILLED, HANG, GRANDCHILDREN, TORN, DISK_FULL, NOT_A_NUMBER, SLOW_TO_SAVE, SLOW_TO_EXIT, DIVERGED = (
    range(1004, 1013)
)
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
    """One in this session, one in a session of its own, and one whose parent is gone."""
    orphan = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import subprocess; print(subprocess.Popen({SLEEP!r}, stdout=subprocess.DEVNULL).pid)",
        ],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
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
    DIE_SILENTLY: die_silently,
    KILLED: lambda: os.kill(os.getpid(), signal.SIGKILL),
    HANG: hang,
    GRANDCHILDREN: leave_grandchildren,
    TORN: lambda: add_metrics('\0\0\0\n{"step": 3.5, "loss": \n[]\n'),
    NOT_A_NUMBER: lambda: add_metrics(
        '{"step": 3.5, "loss": NaN}\n{"step": 3.6, "nonfinite": ["loss"]}\n'
    ),
}
"""What happens after step 3."""


def main() -> int:
    signal.signal(signal.SIGTERM, on_terminate)
    seed = json.loads(pathlib.Path(sys.argv[1]).read_text())["seed"]
    started = time.time()
    write_status(state="starting", step=0, started=started, updated=started)
    pathlib.Path("samples.jsonl").write_text(
        json.dumps({"step": 0, "prompt": "Who?", "answer": "Nobody."}) + "\n"
    )
    for step in range(1, STEPS + 1 if seed not in ENDLESS else 10**9):
        time.sleep(SECONDS_PER_STEP)
        add_metrics(
            json.dumps({"step": step, "time": time.time() - started, "loss": 4 / step}) + "\n"
        )
        write_status(
            state="running", phase="train", step=step, started=started, updated=time.time()
        )
        if step == FAULT_STEP and seed in FAULTS:
            FAULTS[seed]()
        if stopping or pathlib.Path("stop").exists():
            write_status(
                state="stopping", phase="save", step=step, started=started, updated=time.time()
            )
            time.sleep(1.5 if seed == SLOW_TO_SAVE else 0)
            checkpoint = pathlib.Path(f"checkpoints/checkpoint-{step}")
            checkpoint.mkdir(parents=True, exist_ok=True)
            (checkpoint / "manifest.json").write_text("{}")
            write_status(state="stopped", step=step, started=started, updated=time.time())
            time.sleep(600 if seed == SLOW_TO_EXIT else 0)
            return 130
    write_status(
        state="finished",
        step=STEPS,
        started=started,
        updated=time.time(),
        phase_peak_bytes={"load": 2**30},
    )
    return 0


sys.exit(main())
