"""Runs on several devices, as processes of their own: torchrun starts the ranks in a run folder."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.builders.paths import ROOT
from tests.builders.training_runs import make_stage_run, status_of

SECONDS_TO_WAIT = 300


def make_ranked_run(folder: Path, stage: str = "sft", **fields: object) -> Path:
    """Make a run folder with the program; a step takes 8 rows on any number of devices."""
    num_devices = int(str(fields.get("num_devices", 1)))
    rows = 8 // num_devices
    run = make_stage_run(folder, stage, per_device_train_batch_size=rows, **fields)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "core" / "training", run / "training", ignore=ignored)
    return run


def start(run: Path) -> "subprocess.Popen[bytes]":
    """Start the program in a run folder."""
    with (run / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "training", "job.json"],
            cwd=run,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )


def start_by_hand(run: Path, index: int, port: int) -> "subprocess.Popen[bytes]":
    """Start torchrun as users type it on each of two machines, which both are this one."""
    meeting = ["--rdzv-backend=c10d", "--rdzv-id=run", f"--rdzv-endpoint=127.0.0.1:{port}"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    with (run / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [*torchrun, *meeting, "-m", "training", "job.json"],
            cwd=run,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1", "SLURMD_NODENAME": f"node-{index}"},
        )


def finish(run: Path) -> int:
    """Run the program to its end; return its exit code."""
    return start(run).wait(SECONDS_TO_WAIT)


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until something is true. Raises TimeoutError."""
    deadline = time.monotonic() + SECONDS_TO_WAIT
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.1)


def has_stepped(run: Path, step: int = 1) -> bool:
    """Return True once the status says that a step was taken."""
    return (run / "status.json").exists() and status_of(run)["step"] >= step


def processes_in(run: Path) -> list[psutil.Process]:
    """Return the living processes whose working folder is the run folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(run) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found
