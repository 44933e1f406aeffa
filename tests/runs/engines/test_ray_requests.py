"""Test what is said to Ray and how its answers are read, with a web server that only remembers."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from core.job import SpecError
from core.runs.engines import ENGINES, ClusterSilent, ClusterState, Placement, Submission

RAY = ENGINES["ray"]


class FakeDashboard(BaseHTTPRequestHandler):
    """Dashboard that answers with `job`, and keeps what was sent."""

    job: ClassVar[dict[str, Any]] = {}
    status: ClassVar[int] = 200
    version: ClassVar[dict[str, Any] | None] = None
    body: ClassVar[bytes | None] = None
    pause: ClassVar[float] = 0.0
    pause_of_jobs: ClassVar[float] = 0.0
    refusals: ClassVar[list[bytes]] = []
    """What the next jobs are refused with."""
    sent: ClassVar[list[tuple[str, dict[str, Any]]]] = []

    def do_GET(self) -> None:
        """Answer with the job."""
        self._answer()

    def do_POST(self) -> None:
        """Keep what was sent."""
        length = int(self.headers["Content-Length"])
        self.sent.append((self.path, json.loads(self.rfile.read(length))))
        time.sleep(self.pause_of_jobs)
        self._answer(self.refusals.pop() if self.refusals else b"")

    def log_message(self, *_words: object) -> None:
        """Print nothing."""

    def _answer(self, refusal: bytes = b"") -> None:
        is_asked_for_version = self.version is not None and self.path == "/api/version"
        job = self.version if is_asked_for_version else self.job
        body = json.dumps(job).encode() if self.body is None else self.body
        body = refusal or body
        status = 200 if is_asked_for_version else self.status
        self.send_response(500 if refusal else status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Location", "http://127.0.0.1:1/elsewhere")
        self.end_headers()
        if not self.pause:
            self.wfile.write(body)
            return
        with suppress(OSError):  # the other side has gone
            for byte in body:
                self.wfile.write(bytes([byte]))
                time.sleep(self.pause)


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Placement]:
    """Return the address of a fake dashboard."""
    usual = {"job": {}, "status": 200, "sent": [], "version": None, "body": None, "pause": 0.0}
    usual["refusals"] = []
    for name, value in usual.items():
        monkeypatch.setattr(FakeDashboard, name, value)
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeDashboard)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield Placement("ray", address=f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    server.server_close()
    thread.join()


def state_of(folder: Path, place: Placement, **job: object) -> ClusterState:
    FakeDashboard.job = job
    return RAY.ask([Submission(folder, place, "tailor-1")])[folder.name]


def test_job_names_the_script_of_the_folder(place: Placement, tmp_path: Path) -> None:
    folder = tmp_path / "it's a home"
    folder.mkdir()
    job_id = RAY.submit(folder, place, 1)
    (_path, sent) = FakeDashboard.sent[-1]
    words = f"""bash '{tmp_path}/it'"'"'s a home/submit.sh' {job_id}"""
    assert sent["entrypoint"] == words
    assert sent["submission_id"] == job_id


def test_no_secret_is_sent(
    place: Placement, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    RAY.submit(tmp_path, place, 1)
    assert "hf_secret" not in json.dumps(FakeDashboard.sent)


def test_gpus_are_asked_for_where_the_cluster_has_some(place: Placement, tmp_path: Path) -> None:
    FakeDashboard.job = {"data": " - ResourceUsage: 0.0/8.0 CPU, 0.0/4.0 GPU, 0 memory"}
    RAY.submit(tmp_path, place, 2)
    assert FakeDashboard.sent[-1][1]["entrypoint_num_gpus"] == 2


def test_cluster_that_refuses_a_job_is_quoted(place: Placement, tmp_path: Path) -> None:
    FakeDashboard.status = 500
    with pytest.raises(SpecError, match="Ray refuses it: 500"):
        RAY.submit(tmp_path, place, 1)


def test_first_job_of_a_cluster_may_take_longer_than_other_answers(
    place: Placement, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.runs.engines.ray_jobs.SECONDS_TO_ANSWER", 0.5)
    monkeypatch.setattr(FakeDashboard, "pause_of_jobs", 1.0)
    assert RAY.submit(tmp_path, place, 1).startswith("tailor-")


NO_AGENT = b"No available agent to submit job, please try again later."


def refusal(folder: Path, place: Placement) -> str:
    """Return what is said of a job that Ray refuses."""
    with pytest.raises(SpecError) as refused:
        RAY.submit(folder, place, 1)
    return str(refused.value)


def test_cluster_without_an_agent_is_told_with_its_log(
    place: Placement, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.runs.engines.ray_jobs.SECONDS_FOR_AN_AGENT", 0)
    FakeDashboard.refusals = [NO_AGENT]
    said = refusal(tmp_path, place)
    assert "try again later; look at the log of the head node's dashboard agent" in said


def test_refusal_of_ray_that_runs_does_not_say_to_start_it(
    place: Placement, tmp_path: Path
) -> None:
    FakeDashboard.refusals = [b"Traceback\nRuntimeError: the disk is full."]
    said = refusal(tmp_path, place)
    assert "500 RuntimeError: the disk is full; look at Ray's logs on its head node" in said


def test_refusal_for_lack_of_a_token_names_the_variable(place: Placement) -> None:
    FakeDashboard.status = 401
    assert "RAY_AUTH_TOKEN" in RAY.look(place).fix


def test_probe_does_not_wait_for_an_agent(place: Placement, tmp_path: Path) -> None:
    FakeDashboard.refusals = [NO_AGENT] * 2
    assert not RAY.blind_nodes(place, tmp_path / "probe.txt")
    assert len(FakeDashboard.sent) == 1


def test_job_is_sent_again_while_a_cluster_has_no_agent(place: Placement, tmp_path: Path) -> None:
    FakeDashboard.refusals = [NO_AGENT] * 2
    RAY.submit(tmp_path, place, 1)
    assert len(FakeDashboard.sent) == 3


@pytest.mark.parametrize(
    ("word", "stage", "ending"),
    [
        ("PENDING", "waiting", ""),
        ("RUNNING", "running", ""),
        ("STOPPED", "ended", "interrupted"),
        ("FAILED", "ended", "failed"),
    ],
)
def test_states_of_ray_are_understood(
    place: Placement, tmp_path: Path, word: str, stage: str, ending: str
) -> None:
    state = state_of(tmp_path, place, status=word)
    assert (state.stage, state.ending) == (stage, ending)


@pytest.mark.parametrize("code", [72, 127])
def test_node_without_the_folder_is_named(place: Placement, tmp_path: Path, code: int) -> None:
    state = state_of(tmp_path, place, status="FAILED", driver_exit_code=code)
    assert "does not see the run folder" in state.meaning


def test_waiting_job_that_was_stopped_has_ended(place: Placement, tmp_path: Path) -> None:
    (tmp_path / "stop").touch()
    assert state_of(tmp_path, place, status="PENDING").stage == "ended"


def test_job_that_ray_forgot_has_ended(place: Placement, tmp_path: Path) -> None:
    FakeDashboard.status = 404
    FakeDashboard.version = {"ray_version": "2.60.0"}
    assert state_of(tmp_path, place).word == "gone"


def test_another_server_at_the_address_has_not_forgotten_the_job(
    place: Placement, tmp_path: Path
) -> None:
    FakeDashboard.status = 404
    with pytest.raises(ClusterSilent, match="is no dashboard of Ray"):
        state_of(tmp_path, place)


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"\xff\xfe", b"[" * 100_000, b"[1]", b'{"status": ["FAILED"]}']
)
def test_rubbish_is_silence(place: Placement, tmp_path: Path, body: bytes) -> None:
    FakeDashboard.body = body
    with pytest.raises(ClusterSilent, match="what answers there is not Ray"):
        state_of(tmp_path, place)


def test_probe_survives_a_status_that_is_no_text(
    place: Placement, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.runs.engines.ray_jobs.SECONDS_FOR_A_PROBE", 0.1)
    FakeDashboard.job = {"status": ["FAILED"]}
    assert not RAY.blind_nodes(place, tmp_path / "probe.txt")


@pytest.mark.parametrize("status", [200, 500])
def test_answer_that_comes_in_drops_is_given_up(
    place: Placement, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr("core.runs.engines.ray_jobs.SECONDS_TO_ANSWER", 0.5)
    FakeDashboard.status, FakeDashboard.pause, FakeDashboard.body = status, 0.1, b" " * 30
    begun = time.monotonic()
    with pytest.raises(ClusterSilent, match="no whole answer within"):
        state_of(tmp_path, place)
    assert time.monotonic() - begun < 2


@pytest.mark.parametrize("status", [301, 401, 500])
def test_answer_that_is_an_error_is_silence(place: Placement, tmp_path: Path, status: int) -> None:
    FakeDashboard.status = status
    with pytest.raises(ClusterSilent, match=str(status)):
        state_of(tmp_path, place)


def test_address_of_another_web_page_is_not_taken_for_ray(place: Placement) -> None:
    assert RAY.look(place).problem == f"{place.address} is no dashboard of Ray"


def test_dashboard_of_ray_is_found(place: Placement) -> None:
    FakeDashboard.job = {"version": "4", "ray_version": "2.60.0"}
    assert RAY.look(place).problem == ""


def test_cluster_must_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    assert RAY.look(Placement("ray")).problem == "no cluster of Ray is named"


@pytest.mark.parametrize(("code", "num_blind"), [(0, 0), (1, 1), (2, 1), (127, 0), (None, 0)])
def test_node_that_does_not_find_the_probe_is_blind(
    place: Placement, tmp_path: Path, code: int | None, num_blind: int
) -> None:
    FakeDashboard.job = {"status": "FAILED" if code else "SUCCEEDED", "driver_exit_code": code}
    assert len(RAY.blind_nodes(place, tmp_path / "probe.txt")) == num_blind


def test_probe_that_waits_is_taken_back(
    place: Placement, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.runs.engines.ray_jobs.SECONDS_FOR_A_PROBE", 0.1)
    FakeDashboard.job = {"status": "PENDING"}
    assert not RAY.blind_nodes(place, tmp_path / "probe.txt")
    assert FakeDashboard.sent[-1][0].endswith("/stop")


def test_several_nodes_leave_the_devices_to_ray_train(place: Placement, tmp_path: Path) -> None:
    RAY.submit(tmp_path, replace(place, nodes=2, gres="gpu:4"), 1)
    (_path, sent) = FakeDashboard.sent[-1]
    assert "entrypoint_num_cpus" not in sent
    script = (tmp_path / "submit.sh").read_text()
    assert "--workers 8" in script
    assert "--gpu" in script


def test_driver_of_several_nodes_lies_in_the_folder(place: Placement, tmp_path: Path) -> None:
    RAY.submit(tmp_path, replace(place, nodes=2), 1)
    command = [sys.executable, tmp_path / "ray_train.py", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--workers" in done.stdout


def test_job_that_waits_too_long_finds_another_text(place: Placement, tmp_path: Path) -> None:
    first = RAY.submit(tmp_path, place, 1)
    second = RAY.submit(tmp_path, place, 1)
    assert (tmp_path / "probe.txt").read_text() == f"{second}\n"
    assert first != second


@pytest.mark.parametrize("head", ["auto", "ray://head:10001"])
def test_address_of_a_head_is_no_dashboard(monkeypatch: pytest.MonkeyPatch, head: str) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", head)
    said = f"RAY_ADDRESS is {head}, which is no address of a dashboard"
    assert RAY.look(Placement("ray")).problem == said
