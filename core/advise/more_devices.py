"""MORE_DEVICES: the change that divides a model among more devices, as many as there are."""

from core.advise.case import Case, FieldValues
from core.advise.changes import Change, batch_fields
from core.advise.search import FUSED_ADAMW
from core.job import JobSpec

USUAL_NUMBERS = frozenset({2, 4, 8})


def _more_devices(case: Case) -> list[FieldValues]:
    """Return the model divided among the devices that train it already, then among more."""
    job = case.job
    if case.is_on_cpu or case.most_devices == 1:
        return []
    now = job.num_devices
    numbers = {*USUAL_NUMBERS, now, case.most_devices}
    if now == 1 or job.parallelism == "fsdp":
        numbers.remove(now)
    return [
        _divided(case, number) for number in sorted(numbers) if now <= number <= case.most_devices
    ]


def _divided(case: Case, num_devices: int) -> FieldValues:
    """Return the fields of a division: the optimizer stays if it can update parts of tensors."""
    fields = {
        "parallelism": "fsdp",
        "num_devices": num_devices,
        **_batch_on(case.job, num_devices),
    }
    if case.changed(fields):
        return fields
    return {**fields, "optim": FUSED_ADAMW}


def _batch_on(job: JobSpec, num_devices: int) -> dict[str, object]:
    """Return the batch of each of so many devices: a step sees the same rows, or about as many."""
    num_rows = job.effective_batch_size * job.num_devices
    rows_per_device = max(1, round(num_rows / num_devices))
    size = min(job.per_device_train_batch_size, rows_per_device)
    while rows_per_device % size:
        size -= 1
    return batch_fields(size, rows_per_device)


MORE_DEVICES = Change(
    "Divide among {job.num_devices} GPUs",
    "Each of {job.num_devices} GPUs holds a part of weights, gradients and states (fsdp).",
    _more_devices,
)
