"""Child processes: the environment, its limits, and what its parent learns of its end."""

import sys
from pathlib import Path

import pytest

from core.device import child as child_module
from core.device.child import Child, Limits, allowed_environment
from core.job import ChildError

WORKER = """
import os, resource, sys, time
from core.job import Problem
from core.workers.child import serve

def answer(request, report):
    if request["do"] == "limits":
        kinds = (resource.RLIMIT_CPU, resource.RLIMIT_FSIZE)
        return [resource.getrlimit(kind)[0] for kind in kinds]
    if request["do"] == "print":
        print("not a message")
    if request["do"] == "progress":
        report(0.5)
        report(1.0)
    if request["do"] == "fail":
        raise ValueError("bad rows")
    if request["do"] == "sleep":
        time.sleep(60)
    if request["do"] == "exit":
        sys.stderr.write("out of luck\\n")
        sys.stderr.flush()
        os._exit(3)
    return request

serve(answer, lambda error, request: Problem("file", str(error), "mend it"))
"""
LIMITS = Limits(cpu_seconds=60, file_bytes=1000)
SECONDS = 30


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a module that answers requests."""
    (tmp_path / "small_worker.py").write_text(WORKER)
    (tmp_path / "core").symlink_to(child_module.ROOT / "core")
    (tmp_path / "presets").symlink_to(child_module.ROOT / "presets")
    monkeypatch.setattr(child_module, "ROOT", tmp_path)
    return "small_worker"


def test_a_request_is_answered(worker: str) -> None:
    with Child(worker, LIMITS) as child:
        assert child.ask({"do": "print", "n": 1}, SECONDS) == {"do": "print", "n": 1}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limits")
def test_limits_hold_in_the_child(worker: str) -> None:
    with Child(worker, LIMITS) as child:
        assert child.ask({"do": "limits"}, SECONDS) == [60, 1000]


def test_progress_is_reported_up_to_the_end(worker: str) -> None:
    shares: list[float] = []
    with Child(worker, LIMITS) as child:
        child.ask({"do": "progress"}, SECONDS, on_progress=shares.append)
    assert shares[-1] == 1.0


def test_an_error_is_a_problem_and_the_child_lives_on(worker: str) -> None:
    with Child(worker, LIMITS) as child:
        with pytest.raises(ChildError, match="file: bad rows; mend it") as failure:
            child.ask({"do": "fail"}, SECONDS)
        assert failure.value.cause == "refused"
        assert child.ask({"do": "print"}, SECONDS) == {"do": "print"}


def test_a_child_that_exits_says_how(worker: str) -> None:
    with Child(worker, LIMITS) as child:
        for _ in range(2):
            with pytest.raises(ChildError, match="it ended with code 3: out of luck"):
                child.ask({"do": "exit"}, SECONDS)


@pytest.mark.parametrize(
    ("seconds", "is_cancelled", "cause"), [(0.1, False, "too_long"), (SECONDS, True, "cancelled")]
)
def test_a_child_that_is_not_waited_for_is_ended(
    worker: str, seconds: float, is_cancelled: bool, cause: str
) -> None:
    with Child(worker, LIMITS) as child:
        with pytest.raises(ChildError) as failure:
            child.ask({"do": "sleep"}, seconds, is_cancelled=lambda: is_cancelled)
        assert failure.value.cause == cause
        with pytest.raises(ChildError) as failure:
            child.ask({"do": "print"}, SECONDS)
        assert failure.value.cause == "died"


def test_secrets_stay_out_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    assert "AWS_SECRET_ACCESS_KEY" not in allowed_environment("basic", "hub", "training")


def test_the_token_of_the_hub_is_for_those_who_read_from_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "token")
    assert "HF_TOKEN" not in allowed_environment("basic")
    assert allowed_environment("basic", "hub")["HF_TOKEN"] == "token"
