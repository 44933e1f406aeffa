"""Jobs, cards and rows to plan for and to give advice on."""

from dataclasses import replace

from core.advise import Case, plan
from core.job import JobSpec
from core.models import Gpu, ModelShape, gpus, models
from core.speed import RowStatistics

GIB = 2**30
LLAMA_8B = models()["meta-llama/Llama-3.1-8B"].shape
QWEN_SMALL = models()["Qwen/Qwen2.5-0.5B"].shape
QWEN_1_5B = models()["Qwen/Qwen2.5-1.5B"].shape
GEMMA_2 = models()["google/gemma-2-2b"].shape
GEMMA_3 = models()["google/gemma-3-1b-it"].shape
SHORT_ROWS = RowStatistics(20_000, mean_tokens=300, p95_tokens=900)
FULL_ROWS = RowStatistics(20_000, mean_tokens=1900, p95_tokens=2048)
CPU = replace(
    gpus()["t4"],
    id="local",
    compute_capability=(0, 0),
    supports_bf16=False,
    capacity_bytes=24 * GIB,
)


def job_of(**fields: object) -> JobSpec:
    """Return a job that chooses for itself."""
    return JobSpec.parse(fields)


def fastest(**fields: object) -> JobSpec:
    """Return a job under the profile "fastest"."""
    return JobSpec.parse({"profile": "fastest", **fields})


def card(capacity_gib: float, name: str = "rtx-4090") -> Gpu:
    """Return a preset with another capacity."""
    return replace(gpus()[name], capacity_bytes=int(capacity_gib * GIB))


def planned(
    job: JobSpec,
    shape: ModelShape,
    gpu: Gpu,
    rows: RowStatistics | None = None,
    set_by_user: frozenset[str] = frozenset(),
) -> Case:
    """Return the case of a job as it is planned."""
    chosen = plan(job, shape, gpu, rows, set_by_user).change
    return Case(JobSpec.parse({**job.model_dump(), **chosen}), shape, gpu, rows)


def reasons_of(
    job: JobSpec, shape: ModelShape, gpu: Gpu, rows: RowStatistics | None = None
) -> dict[str, str]:
    """Return field -> reason of the plan for a job."""
    return {choice.field: choice.reason for choice in plan(job, shape, gpu, rows).choices}


PLANNED_CASES: dict[str, tuple[JobSpec, ModelShape, Gpu, RowStatistics | None]] = {
    "8B lora, 24 GiB": (fastest(), LLAMA_8B, gpus()["rtx-4090"], SHORT_ROWS),
    "8B qlora, T4": (fastest(method="qlora"), LLAMA_8B, gpus()["t4"], SHORT_ROWS),
    "8B full, 80 GiB": (fastest(method="full"), LLAMA_8B, gpus()["a100-80gb"], FULL_ROWS),
    "8B lora, H200": (fastest(), LLAMA_8B, gpus()["h200"], None),
    "0.5B full, 12 GiB": (
        fastest(method="full", max_length=1024),
        QWEN_SMALL,
        gpus()["rtx-3060"],
        SHORT_ROWS,
    ),
    "0.5B dpo": (
        fastest(stage="dpo", num_train_epochs=2),
        QWEN_SMALL,
        gpus()["rtx-4090"],
        SHORT_ROWS,
    ),
    "capped scores": (fastest(), GEMMA_2, gpus()["l40s"], SHORT_ROWS),
    "processor": (fastest(), QWEN_SMALL, CPU, SHORT_ROWS),
    "smallest": (
        job_of(profile="smallest", method="qlora"),
        LLAMA_8B,
        gpus()["rtx-4090"],
        SHORT_ROWS,
    ),
}
