"""Identity of processes: who still runs, who only has the same pid."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from core.device import identify, is_alive, this_boot
from core.training.contract.process_id import ProcessId


def test_a_process_that_runs_is_identified_and_alive() -> None:
    me = identify(os.getpid())
    assert me
    assert me.pid == os.getpid()
    assert me.boot_id == this_boot()
    assert is_alive(me)


def test_a_process_may_give_its_start_as_psutil_does() -> None:
    since_1970 = psutil.Process().create_time()
    assert is_alive(ProcessId(os.getpid(), since_1970, this_boot()))


@pytest.mark.parametrize("pid", [-1, 2**22 + 1, 2**70])
def test_no_process_has_an_impossible_pid(pid: int) -> None:
    assert identify(pid) is None
    assert not is_alive(ProcessId(pid, 0.0, this_boot()))


def test_a_pid_that_another_process_took_is_not_the_same_process() -> None:
    me = identify(os.getpid())
    assert me
    assert not is_alive(dataclasses.replace(me, start_time=me.start_time - 1))


def test_nothing_is_alive_from_before_a_restart() -> None:
    me = identify(os.getpid())
    assert me
    assert not is_alive(dataclasses.replace(me, boot_id="another boot"))


def test_a_process_that_ended_is_dead_even_while_it_is_a_zombie() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        child = identify(process.pid)
        assert child
        assert is_alive(child)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # ended, but not yet collected
        assert not is_alive(child)
        assert identify(process.pid) is None
    assert not is_alive(child)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system has no /proc")
def test_a_process_with_an_odd_name_is_identified() -> None:
    program = "open('/proc/self/comm', 'w').write('a) S 1 (b'); print(flush=True); input()"
    arguments = [sys.executable, "-c", program]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline()
        child, me = identify(process.pid), identify(os.getpid())
        assert child
        assert me
        assert child.start_time > me.start_time
        process.kill()
