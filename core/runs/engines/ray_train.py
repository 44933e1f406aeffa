"""Train a run on several nodes of a cluster of Ray: TorchTrainer starts the program of its folder.

A copy of this file lies in the run folder. Ray runs it there, with its own Python: it needs
ray[train] and torch, and nothing of Tailor.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

FOLDER = Path(__file__).resolve().parent
STOPPED = 130
SECONDS_FOR_LAST_WORDS = 20
"""Longest time until the run folder says why all end, before Ray ends the others."""


def main() -> int:
    """Train, and return the exit code. SIGTERM asks the programs for a checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, required=True, help="one for each device")
    parser.add_argument("--gpu", action="store_true", help="each worker has one GPU")
    parser.add_argument("--python", required=True, help="Python that trains")
    parser.add_argument("--job", required=True, help="id of the job")
    asked = parser.parse_args()

    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    ray.init()
    signal.signal(signal.SIGTERM, _ask_for_a_checkpoint)
    place = FOLDER / "ray"
    trainer = TorchTrainer(
        train,
        train_loop_config={"folder": str(FOLDER), "python": asked.python, "job": asked.job},
        scaling_config=ScalingConfig(
            num_workers=asked.workers,
            use_gpu=asked.gpu,
            resources_per_worker={"CPU": 1, "GPU": 1} if asked.gpu else {"CPU": 1},
            placement_strategy="SPREAD",
        ),
        torch_config=TorchConfig(backend="gloo"),  # the programs make a group of their own
        run_config=RunConfig(name=asked.job, storage_path=str(place)),
    )
    try:
        trainer.fit()
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return 0


def train(config: Mapping[str, Any]) -> None:
    """Run the training program as the rank that Ray gives this worker. Raises RuntimeError."""
    from ray.train import get_context
    from ray.train.collective import broadcast_from_rank_zero

    folder = Path(config["folder"])
    # Ray has set RANK, WORLD_SIZE, LOCAL_RANK and MASTER_ADDR; its own group has the port.
    variables = {
        "MASTER_PORT": str(broadcast_from_rank_zero(_free_port())),
        "TORCHELASTIC_RUN_ID": str(config["job"]),
        "TAILOR_PARENT": str(os.getpid()),
    }
    with (folder / "log.txt").open("ab") as log:
        program = subprocess.Popen(
            [config["python"], "-m", "training", "job.json"],
            cwd=folder,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        code = program.wait()
    finally:
        program.kill()
    if code not in (0, STOPPED):
        _wait_for_last_words(folder)
        rank = get_context().get_world_rank()
        raise RuntimeError(f"the program of rank {rank} has ended with {code}; see log.txt")


def _wait_for_last_words(folder: Path) -> None:
    for _second in range(SECONDS_FOR_LAST_WORDS):
        try:
            if json.loads((folder / "status.json").read_text())["state"] == "failed":
                return
        except (OSError, ValueError, KeyError):
            pass  # it is not there yet
        time.sleep(1)


def _ask_for_a_checkpoint(_number: int, _frame: FrameType | None) -> None:
    """Let the programs stop after their step, or end at once if none has started."""
    (FOLDER / "stop").touch()
    if not (FOLDER / "ranks").exists():
        sys.exit(STOPPED)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("", 0))
        return int(found.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
