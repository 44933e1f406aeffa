"""Stands in for the training program: writes the same files in no time. Its faults are set by the job's seed."""

import json
import os
import pathlib
import signal
import sys
import time

import psutil

STEPS, SECONDS_PER_STEP = 20, 0.05
CRASH_AT_STEP_3, DIE_SILENTLY, NEVER_END = 1001, 1002, 1003
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


def main() -> int:
    signal.signal(signal.SIGTERM, on_terminate)
    job = json.loads(pathlib.Path(sys.argv[1]).read_text())
    started = time.time()
    write_status(state="starting", step=0, started=started, updated=started)
    checkpoint = pathlib.Path("checkpoints/checkpoint-1")
    with pathlib.Path("metrics.jsonl").open("a") as metrics:
        for step in range(1, STEPS + 1 if job["seed"] != NEVER_END else 10**9):
            time.sleep(SECONDS_PER_STEP)
            metrics.write(json.dumps({"step": step, "time": time.time() - started, "loss": 4 / step}) + "\n")
            metrics.flush()
            write_status(state="running", phase="train", step=step, started=started, updated=time.time())
            if job["seed"] == CRASH_AT_STEP_3 and step == 3:
                write_status(state="failed", step=step, error="The GPU ran out of memory in the backward pass.")
                return 1
            if job["seed"] == DIE_SILENTLY and step == 3:
                print("killed by the weather", flush=True)
                os._exit(9)
            if stopping or pathlib.Path("stop").exists():
                checkpoint.mkdir(parents=True, exist_ok=True)
                (checkpoint / "trainer_state.json").write_text("{}")
                write_status(state="stopped", step=step, started=started, updated=time.time())
                return 130
    write_status(state="finished", step=STEPS, started=started, updated=time.time(), phase_peak_bytes={"load": 2**30})
    return 0


sys.exit(main())
