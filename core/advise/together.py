"""Together: how many devices train a job, how they share its model, and why."""

from dataclasses import dataclass

from core.advise.case import Case
from core.advise.choices import plan
from core.advise.reasons import used
from core.device import cards_together
from core.job import JobSpec, Problem, SpecError
from core.memory import PastRun
from core.memory.program import is_cpu
from core.models import Gpu, ModelShape
from core.speed import RowStatistics

MOST_DEVICES = 8
"""Cards of a usual machine: so many a job for a preset may take."""


@dataclass(frozen=True)
class Together:
    """Job with the devices that it takes, and how they share its model."""

    job: JobSpec
    reason: str = ""
    """Sentence about the division that `auto` chose; "" where there was nothing to choose."""
    most_devices: int = 1
    """Number of devices that could train it together."""


@dataclass(frozen=True)
class Sharing:
    """Facts about several devices that train a job together, for people."""

    num_devices: int
    reason: str
    """Sentence about the division that `auto` chose; "" if the user chose it."""
    is_divided: bool
    loaded_bytes: int
    """Bytes of the whole model, about; 0 for an unknown architecture."""
    gain: float | None
    """Forecast speed of all, as a multiple of that of one; None if there is no forecast."""
    pays_up_to: int | None = None
    """Number of devices up to which twice as many pay; None if as many as there are do, or if so
    few do not hold the job."""
    one_holds_it: bool = True
    """False if one device is too small for the job."""


def together(
    job: JobSpec,
    shape: ModelShape | None,
    gpu: Gpu,
    rows: RowStatistics | None = None,
    *,
    past: tuple[PastRun, ...] = (),
    set_by_user: frozenset[str] = frozenset(),
) -> Together:
    """Return the job with the number of devices that it takes, and how they share its model.

    auto: a copy of the model on each where that fits, else the model divided among them; with the
    settings that its profile would choose. Raises SpecError if this machine has not as many GPUs,
    or for all GPUs of a machine that may be another.
    """
    _require_countable(job)
    num_devices, most = max(1, job.num_devices), MOST_DEVICES
    if job.gpu == "local" and is_cpu(gpu):
        most = num_devices
    elif job.gpu == "local":
        num_devices = len(cards_together(job.device, job.num_devices))
        most = len(cards_together(job.device, 0))
    job = job.model_copy(update={"num_devices": num_devices})
    if num_devices == 1 or job.parallelism != "auto":
        return Together(job, most_devices=most)
    copied = job.model_copy(update={"parallelism": "ddp"})
    if shape is None:
        reason = f"Each of {num_devices} devices holds a copy: this architecture has no estimate."
        return Together(copied, reason, most)
    case = Case(copied, shape, gpu, rows, past)
    planned = _planned(case, set_by_user)
    if planned.fits:
        return Together(copied, _copied_because(planned), most)
    try:
        divided = _divided(job, set_by_user)
    except SpecError as error:
        why = error.problems[0].problem
        reason = f"A copy takes {used(planned)} on each device, but dividing it fails: {why}."
        return Together(copied, reason, most)
    return Together(divided, _divided_because(planned), most)


def _require_countable(job: JobSpec) -> None:
    if job.num_devices == 0 and job.gpu != "local":
        problem = f"0 takes the GPUs of this machine, and {job.gpu} may be in another"
        raise SpecError(Problem("num_devices", problem, "give the number"))


def _planned(case: Case, set_by_user: frozenset[str]) -> Case:
    """Return the case with the settings that its profile chooses."""
    chosen = plan(case.job, case.shape, case.gpu, case.rows, set_by_user, past=case.past)
    return case.changed(chosen.change) or case


def _divided(job: JobSpec, set_by_user: frozenset[str]) -> JobSpec:
    """Return the job with its model divided. An optimizer that the user has not set is the default
    of a divided job. Raises SpecError if the job cannot be divided."""
    fields = {**job.model_dump(), "parallelism": "fsdp"}
    if "optim" not in set_by_user:
        del fields["optim"]
    return JobSpec.parse(fields)


def _copied_because(planned: Case) -> str:
    count = planned.job.num_devices
    return f"Each of {count} devices holds a copy, since one holds the job: {used(planned)}."


def _divided_because(planned: Case) -> str:
    count = planned.job.num_devices
    why = f"since a copy is too large for one: {used(planned)}"
    return f"The model is divided among {count} devices, {why}."
