"""Ray of a head and workers on this machine, which take jobs from those who have a token only."""

import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from tests.builders.ports import free_port

PROGRAM_VARIABLE = "TAILOR_TEST_RAY"
"""Environment variable with the path of the program `ray` of some other environment."""
SECONDS_TO_START = 120


@dataclass(frozen=True)
class Ray:
    """Running Ray."""

    address: str
    token: str


def program() -> str | None:
    """Return the program `ray`, None if there is none."""
    return os.environ.get(PROGRAM_VARIABLE) or shutil.which("ray")


def why_not_here() -> str:
    """Return why no Ray can be started, "" if one can."""
    if program():
        return ""
    return f"pip install -r requirements-ray.txt elsewhere, and name bin/ray in {PROGRAM_VARIABLE}"


def has_train() -> bool:
    """Return True if Ray Train and torch are installed beside the program `ray`."""
    python = Path(str(program())).parent / "python"
    command = [python, "-c", "import ray.train.torch"]
    return not subprocess.run(command, capture_output=True, check=False).returncode


@contextmanager
def running_ray(folder: Path, num_workers: int = 1) -> Iterator[Ray]:
    """Start a head without CPUs and workers with one each; end them and their jobs afterwards."""
    ray = Ray(f"http://127.0.0.1:{free_port()}", secrets.token_hex(16))
    port = free_port()
    dashboard = ray.address.rpartition(":")[2]
    head = ["--head", f"--port={port}", "--dashboard-host=127.0.0.1", "--num-cpus=0"]
    head += [f"--dashboard-port={dashboard}", f"--temp-dir={folder}", "--num-gpus=0"]
    worker = [f"--address=127.0.0.1:{port}", "--num-cpus=1", "--num-gpus=0"]
    started: list[subprocess.Popen[bytes]] = []
    try:
        started.append(_start(head, ray, folder))
        _wait_for_nodes(ray, 1)
        for number in range(num_workers):
            started.append(_start(worker, ray, folder))
            _wait_for_nodes(ray, 2 + number)
        yield ray
    finally:
        for each in reversed(started):
            _kill(each)


def _start(options: Sequence[str], ray: Ray, folder: Path) -> "subprocess.Popen[bytes]":
    variables = {
        "RAY_AUTH_MODE": "token",  # its ports are open to other machines
        "RAY_AUTH_TOKEN": ray.token,
        "RAY_USAGE_STATS_ENABLED": "0",
        # as in an environment that is activated
        "PATH": f"{Path(str(program())).parent}:{os.environ['PATH']}",
    }
    return subprocess.Popen(
        [str(program()), "start", "--block", "--node-ip-address=127.0.0.1", *options],
        cwd=folder,
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _wait_for_nodes(ray: Ray, number: int) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    said = ""
    while time.monotonic() < deadline:
        with suppress(httpx.HTTPError, ValueError, KeyError):
            headers = {"Authorization": f"Bearer {ray.token}"}
            url = f"{ray.address}/nodes?view=summary"
            said = httpx.get(url, headers=headers, timeout=10).text
            if said.count('"hostname"') >= number:
                return
        time.sleep(0.5)
    raise AssertionError(f"Ray did not start: {said[:500]}")


def _kill(process: "subprocess.Popen[bytes]") -> None:
    with suppress(psutil.Error):
        leader = psutil.Process(process.pid)
        for each in [*leader.children(recursive=True), leader]:
            with suppress(psutil.Error):
                each.kill()
    process.wait()
