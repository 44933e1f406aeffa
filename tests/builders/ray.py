"""Ray of a head and workers on this machine, which take jobs from those who have a token only."""

import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from tests.builders.ports import free_port

PROGRAM_VARIABLE = "TAILOR_TEST_RAY"
"""Environment variable with the path of the program `ray` of some other environment."""
SECONDS_TO_START = 120
NAMESPACE = ("unshare", "--mount")
"""Words before a command with mounts of its own, which needs the rights of root."""


@dataclass(frozen=True)
class Ray:
    """Running Ray."""

    address: str
    token: str
    folder: Path
    port: int
    """Port at which its nodes find the head."""
    nodes: list["subprocess.Popen[bytes]"] = field(default_factory=list)
    """Head, and the workers in the order of their start."""

    def add_worker(self, hidden: Path | None = None) -> None:
        """Start a node with one CPU, and wait for it. It does not see the folder `hidden`."""
        options = [f"--address=127.0.0.1:{self.port}", "--num-cpus=1", "--num-gpus=0"]
        self.nodes.append(_start(options, self, _hiding(hidden) if hidden else ()))
        _wait_for_nodes(self, len(self.nodes))

    def end_head(self) -> None:
        """Kill the head, as if its machine had failed."""
        _kill(self.nodes[0])


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
    ray = Ray(f"http://127.0.0.1:{free_port()}", secrets.token_hex(16), folder, free_port())
    dashboard = ray.address.rpartition(":")[2]
    head = ["--head", f"--port={ray.port}", "--dashboard-host=127.0.0.1", "--num-cpus=0"]
    head += [f"--dashboard-port={dashboard}", f"--temp-dir={folder}", "--num-gpus=0"]
    try:
        ray.nodes.append(_start(head, ray))
        _wait_for_nodes(ray, 1)
        for _number in range(num_workers):
            ray.add_worker()
        yield ray
    finally:
        for each in reversed(ray.nodes):
            _kill(each)


def can_hide_folders() -> bool:
    """Return True if programs can be started that do not see a folder."""
    return not subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode


def _hiding(folder: Path) -> Sequence[str]:
    """Return the words before a command that shall see an empty folder in place of this one."""
    script = 'mount -t tmpfs none "$0" && exec "$@"'
    return (*NAMESPACE, "bash", "-c", script, str(folder))


def _start(
    options: Sequence[str], ray: Ray, before: Sequence[str] = ()
) -> "subprocess.Popen[bytes]":
    variables = {
        "RAY_AUTH_MODE": "token",  # its ports are open to other machines
        "RAY_AUTH_TOKEN": ray.token,
        "RAY_USAGE_STATS_ENABLED": "0",
        # as in an environment that is activated
        "PATH": f"{Path(str(program())).parent}:{os.environ['PATH']}",
    }
    # Nodes of two clusters on one machine would take the same port, and the second could not start
    # jobs.
    usual = ["--block", "--node-ip-address=127.0.0.1"]
    usual.append(f"--dashboard-agent-listen-port={free_port()}")
    return subprocess.Popen(
        [*before, str(program()), "start", *usual, *options],
        cwd=ray.folder,
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
