"""What sbatch answers, and why jobs of Slurm wait, in plain words. Runs no command.

Reasons: https://slurm.schedmd.com/job_reason_codes.html
"""

import re
from collections.abc import Mapping

from core.job import Problem, SpecError
from core.runs.engines.placement import Placement

JOB_ID = re.compile(
    r"^(?:Submitted batch job )?(\d{1,18})(?:;\S*| on cluster \S+)?[^\S\n]*$",
    re.ASCII | re.MULTILINE,
)
"""Line of sbatch: a job, and the name of its cluster; longer where a site drops --parsable. A site
may print other lines around it."""
REASONS: Mapping[str, str] = {
    "Priority": "other jobs are before it",
    "Resources": "it waits for free nodes",
    "BeginTime": "it may start a little later",
    "Dependency": "it waits for another job",
    "JobHeldUser": "you hold it back: scontrol release",
    "JobHeldAdmin": "an administrator holds it back",
    "PartitionDown": "the partition accepts no jobs now",
    "PartitionConfig": "the partition does not allow what it asks for: ask for less, or another",
    "PartitionTimeLimit": "the partition does not allow so much time: ask for less",
    "PartitionNodeLimit": "the partition does not allow so many nodes: ask for fewer",
    "QOSMaxJobsPerUserLimit": "you have as many jobs as you may",
    "AssocGrpGRES": "your group uses as many devices as it may",
    "ReqNodeNotAvail": "the nodes that it needs are not available",
}
"""Reason of a waiting job -> what it means. A site may know others, which stand for themselves."""
WRONG_FIELDS: Mapping[str, str] = {
    "partition": "partition",
    "account": "account",
    "node count": "nodes",
    "gres": "gres",
    "node configuration": "gres",
    "time limit": "time",
}
"""Part of what sbatch says -> field that it refuses."""


def job_id_in(printed: str, errors: str, again: str) -> str:
    """Return the id of the job that sbatch says to have made. `again` is the command to send it
    again. Raises SpecError for none, and for several."""
    found = set(JOB_ID.findall(printed))
    if len(found) != 1:
        raise SpecError(_answer_without_id(printed + errors, again))
    return str(found.pop())


def refusal(said: str, again: str, placement: Placement) -> Problem:
    """Return why sbatch did not take a job, in its own words."""
    words = _in_one_line(said) or "sbatch failed without a word"
    field = "on"
    for part, name in WRONG_FIELDS.items():
        if part in words.casefold():
            field = name
            break
    if field == "gres" and not placement.gres:
        field = "num_devices"  # from which its GPUs follow
    return Problem(field, f"Slurm refuses it: {words}", f"change what it refuses: {again}")


def _answer_without_id(said: str, again: str) -> Problem:
    """Return what sbatch printed in place of one id of a job, which may be there."""
    printed = _in_one_line(said) or "nothing"
    problem = f"Slurm gave no job id, but printed: {printed}"
    fix = f"a job that is there all the same (see squeue) will not train; send it again: {again}"
    return Problem("on", problem, fix)


def _in_one_line(said: str) -> str:
    """Return what sbatch printed, each line once, as far as a message has room for it."""
    lines = [line.removeprefix("sbatch: error: ").strip() for line in said.splitlines()]
    return "; ".join(dict.fromkeys(filter(None, lines)))[:300]
