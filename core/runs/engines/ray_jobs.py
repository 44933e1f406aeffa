"""Ray Jobs: the web interface of a cluster that the user has. Never starts a head.

All who reach that interface run programs on the cluster, and read the settings of its jobs: no
secret is sent there but the token of RAY_AUTH_TOKEN. Tried with Ray 2.60.
https://docs.ray.io/en/latest/cluster/running-applications/job-submission/rest.html
"""

import json
import os
import re
import secrets
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request

from core.job import Problem, SpecError
from core.runs.engines import script
from core.runs.engines.placement import TITLES, Placement, web_address
from core.runs.engines.record import ClusterSilent, Engine, Found
from core.runs.engines.submission import ClusterState, Submission
from core.runs.engines.web import OK, answer_to
from core.training.contract.files import write_text

SECONDS_TO_ANSWER = 10
SECONDS_TO_SUBMIT = 60
"""Time to take a job."""
SECONDS_FOR_AN_AGENT = 30
"""The agents of a cluster that has just started are not there at once."""
NO_AGENT = "No available agent"
"""Part of Ray's answer before it has taken a job: it waits about 10 s for an agent itself."""
SECONDS_TO_STOP = 600
"""Time between SIGTERM and SIGKILL, in which a checkpoint is saved. Ray's own is 3 s."""
ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""Variables that name the cluster. RAY_ADDRESS may name its head for programs instead."""
NOT_FOUND = 404
NOT_ALLOWED = (401, 403)
NO_SUCH_FILE = 127
"""Exit code of a shell that does not find submit.sh."""
NOT_FOUND_BY_GREP = (1, 2)
"""Exit codes of grep: another text, or no such file."""
CPUS_OF_A_PROBE = 0.01
"""Share of a CPU: without one Ray looks from the head, which may see more."""
SECONDS_FOR_A_PROBE, SECONDS_BETWEEN_LOOKS = 15, 0.3
HAS_GPUS = re.compile(r"/[\d.]+ GPU\b")
TRUST = (
    "All who reach the dashboard of Ray run programs as the cluster: keep it on loopback behind "
    "SSH, or switch on its tokens. RAY_AUTH_TOKEN of Tailor is sent to that address."
)
WORD = re.compile(r"[A-Z_]{1,32}")
"""State of a job, also one that this version does not know."""
NOT_RAY = "what answers there is not Ray"
EXAMPLE = "such as http://127.0.0.1:8265"
FIX = f"start it, or give the address of its dashboard, {EXAMPLE}"
LOGS = "/tmp/ray/session_latest/logs"
"""Folder of Ray's logs on each node, if it was started without --temp-dir."""
NO_AGENT_FIX = f"look at the log of the head node's dashboard agent, {LOGS}/dashboard_agent.log"
REFUSAL_FIX = (
    f"look at Ray's logs on its head node, in {LOGS}, or give the address of its dashboard, "
    f"{EXAMPLE}"
)
NO_TOKEN_FIX = "set RAY_AUTH_TOKEN to the token of that cluster"
NO_ADDRESS_FIX = f"give the address of its dashboard (--address, or RAY_ADDRESS), {EXAMPLE}"
NUM_GPUS = re.compile(r"gpu(?::[A-Za-z][\w.-]*)?:(\d{1,3})")
ENDINGS: Mapping[str, str] = {
    "SUCCEEDED": "the program ended without a word",
    "STOPPED": "it was stopped: resume it",
    "FAILED": "the program ended without a word",
}
"""State of a job that has ended -> what that means for a run whose program said nothing."""


class RayRefuses(ClusterSilent):
    """Answer of Ray that is an error."""

    def __init__(self, code: int, said: str):
        super().__init__(f"{code} {said}".strip())
        self.code, self.said = code, said


def look(placement: Placement) -> Found:
    """Return whether the cluster that the user names answers."""
    try:
        _require_ray(_address(placement))
    except SpecError as error:
        return Found(error.problems[0].problem, error.problems[0].fix)
    except ClusterSilent as silence:
        return Found(f"Ray does not answer: {silence}", _fix_of(silence))
    return Found()


def _require_ray(address: str) -> None:
    """Raise SpecError if something else answers at an address, ClusterSilent if nothing does."""
    if "ray_version" not in (_request(address, "/api/version") or {}):
        raise SpecError(Problem("on", f"{address} is no dashboard of Ray", FIX))


def submit(folder: Path, placement: Placement, num_devices: int) -> str:
    """Write submit.sh, unless it is there, and hand it to the cluster. Return the id of the job.

    Raises SpecError, OSError.
    """
    address = _address(placement)
    job_id = f"tailor-{secrets.token_hex(4)}"
    settings = {
        "RAY_JOB_STOP_WAIT_TIME_S": str(SECONDS_TO_STOP),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONUNBUFFERED": "1",
    }
    try:
        num_gpus = _num_gpus(address, placement.gres, num_devices)
        job: dict[str, object] = {
            "entrypoint": shlex.join(["bash", str(folder / script.NAME), job_id]),
            "submission_id": job_id,
            "runtime_env": {"env_vars": settings},
            "metadata": {"name": folder.name},
        }
        if placement.nodes == 1:  # else Ray Train asks for them, and this job waits on the head
            job |= {"entrypoint_num_cpus": 1, "entrypoint_num_gpus": num_gpus}
        _write_script(folder, placement.nodes, num_gpus or max(1, num_devices), num_gpus > 0)
        # Ray cannot take back a job that waits. One that starts too late finds another text here.
        write_text(folder / script.PROBE, f"{job_id}\n")
        _hand_over(address, job, SECONDS_FOR_AN_AGENT)
    except ClusterSilent as silence:
        problem = Problem("on", f"Ray refuses it: {silence}", _fix_of(silence))
        raise SpecError(problem) from None
    return job_id


def _fix_of(silence: ClusterSilent) -> str:
    """Return what to do about a cluster that does not answer, or answers with an error."""
    if not isinstance(silence, RayRefuses):
        return FIX
    if NO_AGENT in silence.said:
        return NO_AGENT_FIX
    return NO_TOKEN_FIX if silence.code in NOT_ALLOWED else REFUSAL_FIX


def _hand_over(address: str, job: Mapping[str, object], seconds_for_an_agent: float) -> None:
    """Send a job, again while the cluster has no agent to start it. Raises ClusterSilent."""
    deadline = time.monotonic() + seconds_for_an_agent
    while True:
        try:
            _request(address, "/api/jobs/", job, SECONDS_TO_SUBMIT)
            return
        except RayRefuses as refusal:
            if NO_AGENT not in refusal.said or time.monotonic() > deadline:
                raise
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _write_script(folder: Path, num_nodes: int, num_devices: int, has_gpus: bool) -> None:
    """Write submit.sh, unless it is there, and the program that it needs. Raises OSError."""
    if (folder / script.NAME).exists():
        return
    body = script.one_node(logs=True)
    if num_nodes > 1:
        shutil.copyfile(script.DRIVER, folder / script.DRIVER.name)
        body = script.ray_train(num_nodes * num_devices, has_gpus=has_gpus)
    script.write_script(folder, (), body, starts_elsewhere=True)


def ask(submissions: Sequence[Submission]) -> Mapping[str, ClusterState]:
    """Return the states of jobs by run. Raises ClusterSilent."""
    return {each.folder.name: _state_of(each) for each in submissions}


def stop(submission: Submission) -> None:
    """Send SIGTERM to the program, or take a waiting job out. Raises ClusterSilent."""
    _request(_address(submission.placement), f"/api/jobs/{submission.job_id}/stop", {})


def blind_nodes(placement: Placement, file: Path) -> Sequence[str]:
    """Return a node that does not see a file, if one has a moment now."""
    try:
        address = _address(placement)
        job_id = f"tailor-probe-{secrets.token_hex(4)}"
        job = {
            "entrypoint": shlex.join(["grep", "--quiet", "--fixed-strings", file.stem, str(file)]),
            "submission_id": job_id,
            "entrypoint_num_cpus": CPUS_OF_A_PROBE,
        }
        _hand_over(address, job, 0)  # where no agent can look, submit.sh does
        return _answer_of_probe(address, job_id)
    except (ClusterSilent, SpecError):
        return ()


def _answer_of_probe(address: str, job_id: str) -> Sequence[str]:
    """Wait some seconds for a job that looks for a file. Raises ClusterSilent."""
    deadline = time.monotonic() + SECONDS_FOR_A_PROBE
    while time.monotonic() < deadline:
        job = _request(address, f"/api/jobs/{job_id}") or {}
        if str(job.get("status")) in ENDINGS:
            return (
                ["a node of the cluster"]
                if job.get("driver_exit_code") in NOT_FOUND_BY_GREP
                else ()
            )
        time.sleep(SECONDS_BETWEEN_LOOKS)
    _request(address, f"/api/jobs/{job_id}/stop", {})
    return ()


RAY = Engine(
    id="ray",
    title=TITLES["ray"],
    fields=("nodes", "address", "gres"),
    look=look,
    submit=submit,
    ask=ask,
    stop=stop,
    cancel=stop,
    blind_nodes=blind_nodes,
    trust=TRUST,
)


def address_of_environment() -> str:
    """Return the address of the dashboard that the environment names, "" for none."""
    values = (os.environ.get(name, "") for name in ADDRESSES)
    return next((each for each in values if each.startswith(("http://", "https://"))), "")


def _address(placement: Placement) -> str:
    """Return the address of the dashboard. Raises SpecError if the user has named none."""
    address = placement.address or address_of_environment()
    if not address:
        problem = "no cluster of Ray is named"
        if head := os.environ.get("RAY_ADDRESS"):
            problem = f"RAY_ADDRESS is {head[:200]}, which is no address of a dashboard"
        raise SpecError(Problem("on", problem, NO_ADDRESS_FIX))
    return web_address(address)


def _num_gpus(address: str, gres: str, num_devices: int) -> int:
    """Return the GPUs to ask for: those that the user names, or one for each device if there are
    GPUs. Raises ClusterSilent, SpecError."""
    if gres:
        found = NUM_GPUS.fullmatch(gres)
        if found is None:
            raise SpecError(
                Problem("gres", f"{gres!r} is no number of GPUs", "write it like gpu:2")
            )
        return int(found[1])
    status = json.dumps(_request(address, "/api/cluster_status"))
    return max(1, num_devices) if HAS_GPUS.search(status) else 0


def _state_of(submission: Submission) -> ClusterState:
    try:
        job = _request(_address(submission.placement), f"/api/jobs/{submission.job_id}")
        if job is None:
            _require_ray(_address(submission.placement))
    except SpecError as error:
        raise ClusterSilent(error.reason) from None
    if job is None:
        said = "the cluster no longer knows it"
        return ClusterState("ended", "gone", "", said, "interrupted", ended=time.time())
    word, message = str(job.get("status") or ""), str(job.get("message") or "")
    if word == "PENDING" and (submission.folder / "stop").exists():
        return ClusterState("ended", "STOPPED", ended=time.time())
    if word == "PENDING":
        return ClusterState("waiting", word, "", "it waits for free CPUs or GPUs")
    if not WORD.fullmatch(word):
        raise ClusterSilent(f"{_address(submission.placement)}: {NOT_RAY}")
    if word not in ENDINGS:
        return ClusterState("running", word)
    code = job.get("driver_exit_code")
    if code in (script.FOLDER_NOT_SEEN, NO_SUCH_FILE):
        said = f"{script.NOT_SEEN}: {script.NOT_SEEN_FIX}"
        return ClusterState("ended", word, "", said, "failed", ended=time.time())
    if word == "STOPPED":
        return ClusterState("ended", word, "", ENDINGS[word], "interrupted", ended=time.time())
    reason = " ".join(message.split())[:200]
    return ClusterState("ended", word, reason, ENDINGS[word], "failed", ended=time.time())


def _request(
    address: str, path: str, sent: Mapping[str, object] | None = None, seconds: float = 0.0
) -> dict[str, object] | None:
    """Return the JSON object that the cluster answers within `seconds`, 0 for the usual time; None
    if there is no such job.

    Raises ClusterSilent.
    """
    headers = {"Content-Type": "application/json"}
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        headers["Authorization"] = f"Bearer {token}"
    body = None if sent is None else json.dumps(sent).encode()
    try:
        request = Request(f"{address}{path}", data=body, headers=headers)
        code, answer = answer_to(request, seconds or SECONDS_TO_ANSWER)
        if code == NOT_FOUND:
            return None
        if code != OK:
            said = answer.decode("utf-8", errors="replace").strip()
            last_line = said.rpartition("\n")[2][:200]
            raise RayRefuses(code, last_line.rstrip(". "))
        found = json.loads(answer)
    except (ValueError, RecursionError):
        raise ClusterSilent(f"{address}: {NOT_RAY}") from None
    except (URLError, OSError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise ClusterSilent(f"{address}: {getattr(reason, 'strerror', None) or reason}") from None
    return found if isinstance(found, dict) else {}
