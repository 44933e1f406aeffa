"""Trace check: takes one training step in a child process, on tensors without data.

Works for every decoder that transformers knows, and needs no GPU and no network. Remembers what it
found and replays it through the allocator. Never imports torch itself.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from core.device.child import Child, Limits, ignore_progress
from core.job import ChildError, JobSpec, Problem, TraceError
from core.memory.components import COMPONENTS, Component
from core.memory.estimate import MemoryEstimate, PeakMemory, estimate_of
from core.memory.program import is_cpu
from core.memory.resident import Totals
from core.memory.several_devices import room_of_each
from core.memory.simulator import Allocator
from core.memory.step import MemoryPhase
from core.memory.uncertainty import uncertainty_of
from core.models import Gpu
from core.training.contract.files import write_json
from core.training.contract.job import EXTRA_OPTIMIZERS
from core.training.contract.stages import STAGES

CORE = Path(__file__).resolve().parent.parent
TRACED_CODE = (CORE / "training", CORE / "workers")
PROGRAM = "core.workers.trace"
TRACED_PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes")
# fmt: off
FIELDS = (
    "model", "revision", "stage", "method", "dtype", "max_length", "packing",
    "per_device_train_batch_size", "gradient_accumulation_steps", "max_grad_norm", "optim",
    "gradient_checkpointing", "checkpoint_every_n_layers", "attn_implementation", "lora_r",
    "lora_alpha", "lora_dropout", "target_modules", "use_dora", "use_rslora", "init_lora_weights",
    "modules_to_save", "num_trainable_layers", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant",
    "precompute_ref_log_probs", "loss_type", "beta", "max_completion_length", "num_devices",
    "parallelism", "check_steps",
)
# fmt: on
"""Fields of a job that the trace reads. A test finds what is missing."""
FIELDS_WITHOUT_MEMORY = ("model", "revision", "lora_alpha", "use_rslora", "init_lora_weights")
"""Those among them that change no tensor's size."""
SECONDS_TO_TRACE = 300
MAX_TRACE_BYTES = 12 * 2**30
"""Memory of the child. It takes about 0.7 GiB for a model of any size."""
TRACED_NOTES: Mapping[Component, str] = {
    "weights": "The model as it is loaded, with its adapter.",
    "temporary": "Everything else at the peak, optimizer states included: a trace knows sizes, "
    "not purposes.",
}

OnProgress = Callable[[float], None]
"""Function of the share that is done, from 0 to 1."""


@dataclass(frozen=True)
class Unsupported:
    """Kind of job that cannot be traced."""

    applies: Callable[[JobSpec], bool]
    why: str


UNSUPPORTED = (
    Unsupported(lambda job: not STAGES[job.stage].is_trainable, "this stage cannot be traced"),
    Unsupported(lambda job: job.use_liger_kernel, "Liger's kernels cannot run without a GPU"),
    Unsupported(lambda job: bool(job.reward_model), "the size of a reward model is unknown"),
    Unsupported(lambda job: job.activation_offloading, "nothing can be offloaded without a GPU"),
    Unsupported(lambda job: job.neftune_noise_alpha > 0, "noisy embeddings cannot be traced"),
    Unsupported(lambda job: job.label_smoothing_factor > 0, "smoothed labels cannot be traced"),
    Unsupported(lambda job: job.optim in EXTRA_OPTIMIZERS, "this optimizer cannot be traced"),
)


@dataclass(frozen=True)
class TraceResult:
    """Memory of one traced training step."""

    phases: Mapping[MemoryPhase, int]
    """Allocated peak of load, forward, backward, optimizer_step and eval, in bytes."""
    peak_allocated_bytes: int
    peak_reserved_bytes: int
    seconds: float
    """Duration of the trace, also if the result was remembered."""
    num_parameters: int
    num_trainable_parameters: int
    paged_bytes: int
    """Optimizer states in managed memory. They are not part of the peaks."""


@dataclass(frozen=True)
class TraceRequest:
    """One job to trace."""

    job: JobSpec
    config: Mapping[str, Any]
    """The model's config.json."""
    gpu: Gpu

    def to_json(self) -> dict[str, Any]:
        """Return the request as the child reads it."""
        return {
            "job": self.job.model_dump(include=set(FIELDS)),
            "config": dict(self.config),
            "card": {
                "compute_capability": list(self.gpu.compute_capability),
                "supports_bf16": self.gpu.supports_bf16,
            },
            "evaluation_rows": self.job.evaluation_rows,
        }

    @property
    def key(self) -> str:
        """Name of the result in the cache: a hash of everything that the result depends on."""
        request = self.to_json()
        for name in FIELDS_WITHOUT_MEMORY:
            del request["job"][name]
        text = json.dumps([request, _versions(), _source_digest()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def uncompiled(job: JobSpec) -> JobSpec:
    """Return the job as it is traced: without torch.compile, which fuses operations."""
    return job.model_copy(update={"torch_compile": False, "activation_memory_budget": 1.0})


def trace_peak_memory(
    request: TraceRequest, cache_dir: Path, on_progress: OnProgress = ignore_progress
) -> TraceResult:
    """Trace one job, or return its result from the cache. Takes seconds. Raises TraceError."""
    path = cache_dir / f"{request.key}.json"
    # A file that is absent, incomplete or of another version: trace again.
    with suppress(OSError, ValueError, TypeError):
        return TraceResult(**json.loads(path.read_text(encoding="utf-8")))
    (result,) = trace_all([request], on_progress)
    if isinstance(result, TraceError):
        raise result
    with suppress(OSError):  # without a cache the next trace only takes longer
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(result))
    return result


def estimate_by_tracing(request: TraceRequest, cache_dir: Path) -> MemoryEstimate:
    """Estimate memory by tracing, for architectures without a formula. Raises TraceError.

    Everything beyond the loaded model is one component: a trace knows sizes, not purposes.
    """
    traced = trace_peak_memory(request, cache_dir)
    job, gpu = request.job, request.gpu
    loaded_bytes = traced.phases["load"]
    sizes = Totals(traced.paged_bytes, traced.num_parameters, traced.num_trainable_parameters)
    at_peak: dict[Component, int] = {
        "weights": loaded_bytes,
        "temporary": traced.peak_allocated_bytes - loaded_bytes,
    }
    gap_bytes = traced.peak_reserved_bytes - traced.peak_allocated_bytes
    notes = {**COMPONENTS, **TRACED_NOTES}
    peak = PeakMemory(traced.phases, at_peak, gap_bytes, sizes, notes)
    uncertainty = uncertainty_of(job, gpu, job.max_length)
    capacity_bytes, context = room_of_each(gpu, job.num_devices)
    return estimate_of(peak, capacity_bytes, uncertainty, context)


def trace_all(
    requests: Iterable[TraceRequest], on_progress: OnProgress = ignore_progress
) -> Iterator[TraceResult | TraceError]:
    """Trace jobs one after the other in one child process.

    Yields an error for a job that cannot be traced. Once the child has died or taken too long, all
    further jobs get an error too.
    """
    with Child(PROGRAM, Limits(data_bytes=MAX_TRACE_BYTES)) as child:
        for request in requests:
            reasons = [each.why for each in UNSUPPORTED if each.applies(request.job)]
            if reasons:
                yield _trace_error(reasons[0])
                continue
            try:
                answer = child.ask(request.to_json(), SECONDS_TO_TRACE, on_progress=on_progress)
                yield _result(answer, request.gpu)
            except ChildError as error:
                yield _trace_error(f"the trace gave no estimate: {error.reason}")


def _trace_error(why: str) -> TraceError:
    fix = "use the estimate, or choose a model that has one"
    return TraceError(Problem("exact check", why, fix))


def _result(answer: Mapping[str, Any], gpu: Gpu) -> TraceResult:
    """Return the result that a child's answer contains.

    The gap between reserved and allocated memory is that of the deepest model that was traced.
    """
    gap_bytes = 0
    if not is_cpu(gpu):
        allocator = Allocator(expandable_segments=True)
        allocator.replay(answer["log"], answer["sizes"])
        gap_bytes = allocator.peak_reserved_bytes - allocator.peak_allocated_bytes
    values = {each.name: answer[each.name] for each in fields(TraceResult) if each.name in answer}
    return TraceResult(**values, peak_reserved_bytes=answer["peak_allocated_bytes"] + gap_bytes)


@cache
def _versions() -> dict[str, str]:
    """Return the version of each installed library whose code is traced."""
    versions = {}
    for package in TRACED_PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


@cache
def _source_digest() -> str:
    """Return a hash of our own sources that a trace runs, since results change with them."""
    digest = hashlib.sha256()
    for folder in TRACED_CODE:
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()
