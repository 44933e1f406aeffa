"""Slurm of one node or two, with files of its own: Debian's slurmctld, slurmd and munge.

Both nodes are this machine. Runs as root, without systemd; reachable on 127.0.0.1 alone. Changes
no setting of the machine.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.builders.ports import free_port

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "squeue", "scontrol", "scancel", "sinfo")
SYSTEM_FOLDERS = "/usr/sbin:/usr/bin:/sbin:/bin"
SECONDS_TO_START = 30
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldAddr=127.0.0.1
SlurmctldPort={controller_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=200000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
InactiveLimit=0
KillWait=30
MinJobAge=300
GresTypes=gpu
PartitionName=debug Nodes={host} Default=YES MaxTime=01:00:00 State=UP PriorityTier=1
PartitionName=urgent Nodes={host} MaxTime=00:30:00 State=UP PriorityTier=9 PreemptMode=OFF
NodeName=DEFAULT CPUs={num_cores} RealMemory=2000
NodeName={host} NodeHostname={host} NodeAddr=127.0.0.1 Port={node_port} Gres=gpu:2
"""
SECOND = "second"
"""Name of the second node, and of the partition that has it alone."""
CONFIGURATION_OF_SECOND = """\
NodeName=second NodeHostname={host} NodeAddr=127.0.0.1 Port={second_port} Gres=gpu:2
PartitionName=second Nodes=second MaxTime=00:30:00 State=UP PriorityTier=1
PartitionName=both Nodes=ALL MaxTime=00:30:00 State=UP PriorityTier=1
"""
WITHOUT = """mount -t tmpfs none "$1" && shift && exec "$@" """
"""Starts a program for which a folder is empty, in a name space of its own."""


@dataclass(frozen=True)
class Slurm:
    """Running Slurm."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """Variables by which the commands of Slurm find it."""
        path = f"{SYSTEM_FOLDERS}:{os.environ.get('PATH', '')}"
        return {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": path}

    def ask(self, *command: str) -> str:
        """Return what a command of Slurm prints."""
        done = subprocess.run(
            command,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        return done.stdout + done.stderr


def why_not_here() -> str:
    """Return why no Slurm can be started on this machine, "" if one can."""
    missing = [name for name in PROGRAMS if not shutil.which(name, path=SYSTEM_FOLDERS)]
    if missing:
        return f"no {', '.join(missing)}: apt-get install slurmctld slurmd slurm-client munge"
    if os.geteuid() != 0:
        return "slurmd starts programs of other accounts, so it needs root"
    return ""


@contextmanager
def running_slurm(
    folder: Path, *, num_nodes: int = 1, hidden: Path | None = None
) -> Iterator[Slurm]:
    """Start a Slurm in a folder whose path is short, and end it and its jobs afterwards.

    For the second node, the folder `hidden` is empty.
    """
    folder.chmod(0o755)
    (folder / "state").mkdir()
    _write_configuration(folder, num_nodes)
    slurm = Slurm(folder)
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        for command in _commands(folder, num_nodes, hidden):
            daemons.append(_start(command, slurm))
        _wait_until_idle(slurm)
        yield slurm
    finally:
        slurm.ask("scancel", "--user=root", "--full")
        _wait_until_empty(slurm)
        for daemon in reversed(daemons):
            daemon.terminate()
            with suppress(subprocess.TimeoutExpired):
                daemon.wait(10)
            daemon.kill()
            daemon.wait()


def _write_configuration(folder: Path, num_nodes: int) -> None:
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    template = CONFIGURATION
    if num_nodes > 1:
        template += CONFIGURATION_OF_SECOND
    text = template.format(
        folder=folder,
        host=socket.gethostname(),
        controller_port=free_port(),
        node_port=free_port(),
        second_port=free_port(),
        num_cores=os.cpu_count(),
    )
    (folder / "slurm.conf").write_text(text)
    (folder / "gres.conf").write_text("Name=gpu File=/dev/zero\nName=gpu File=/dev/full\n")


def _commands(folder: Path, num_nodes: int, hidden: Path | None) -> Iterator[Sequence[str]]:
    files = ("key-file=munge.key", "pid-file=munge.pid", "log-file=munge.log", "seed-file=seed")
    options = [f"--{name}={folder / file}" for name, file in (each.split("=") for each in files)]
    yield ("munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *options)
    yield ("slurmctld", "-D", "-f", f"{folder}/slurm.conf")
    node = ("slurmd", "-D", "-f", f"{folder}/slurm.conf", "-N")
    yield (*node, socket.gethostname())
    if hidden:
        yield ("unshare", "--mount", "sh", "-c", WITHOUT, "sh", str(hidden), *node, SECOND)
    elif num_nodes > 1:
        yield (*node, SECOND)


def _start(command: Sequence[str], slurm: Slurm) -> "subprocess.Popen[bytes]":
    program = shutil.which(command[0], path=SYSTEM_FOLDERS) or command[0]
    daemon = subprocess.Popen(
        [program, *command[1:]],
        env={**os.environ, **slurm.environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    time.sleep(0.5)
    return daemon


def _wait_until_idle(slurm: Slurm) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    said = ""
    while time.monotonic() < deadline:
        said = slurm.ask("sinfo", "--noheader", "--format=%T")
        if said.split() and set(said.split()) == {"idle"}:
            return
        time.sleep(0.3)
    raise AssertionError(f"Slurm did not start: {said}")


def _wait_until_empty(slurm: Slurm) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while slurm.ask("squeue", "--noheader").strip() and time.monotonic() < deadline:
        time.sleep(0.3)
