"""The referee of the memory estimate: has a child process take one training step on tensors without data, remembers
what it found, and replays it through the allocator. Imports no torch; needs no GPU and no network.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from core.device.child import Child, Limits
from core.job import ChildError, JobSpec, Problem, TraceError
from core.memory import MemoryEstimate
from core.memory.estimate import NOTES, Found, estimate_of
from core.memory.simulator.allocator import Allocator
from core.memory.step import Phase
from core.memory.uncertainty import spread_of
from core.models import Gpu
from core.training.contract.files import write_json
from core.training.contract.optimizers import EXTRA_OPTIMIZERS
from core.training.contract.stages import STAGES

TRACED_CODE = tuple(
    Path(__file__).resolve().parent.parent / room for room in ("training", "workers")
)
PROGRAM = "core.workers.trace"
PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes")
FIELDS = (
    *(
        "model",
        "revision",
        "stage",
        "method",
        "dtype",
        "max_length",
        "packing",
        "per_device_train_batch_size",
    ),
    *(
        "gradient_accumulation_steps",
        "max_grad_norm",
        "optim",
        "gradient_checkpointing",
        "attn_implementation",
    ),
    *(
        "lora_r",
        "lora_alpha",
        "lora_dropout",
        "target_modules",
        "use_dora",
        "use_rslora",
        "init_lora_weights",
    ),
    *(
        "bnb_4bit_quant_type",
        "bnb_4bit_use_double_quant",
        "modules_to_save",
        "num_trainable_layers",
    ),
    *(
        "checkpoint_every_n_layers",
        "precompute_ref_log_probs",
        "loss_type",
        "beta",
        "max_completion_length",
    ),
)
"""Fields of a job that the trace reads."""
NOT_MEMORY = ("model", "revision", "lora_alpha", "use_rslora", "init_lora_weights")
"""Those among them that change no tensor's size."""


@dataclass(frozen=True)
class Objection:
    """A kind of job that the trace has nothing to say about."""

    applies: Callable[[JobSpec], bool]
    why: str


OBJECTIONS = (
    Objection(
        lambda job: not STAGES[job.stage].is_trainable, "no trace takes the steps of this stage"
    ),
    Objection(lambda job: job.use_liger_kernel, "Liger's kernels cannot run without a GPU"),
    Objection(lambda job: bool(job.reward_model), "no trace knows the size of a reward model"),
    Objection(lambda job: job.activation_offloading, "without a GPU nothing can be offloaded"),
    Objection(lambda job: job.optim in EXTRA_OPTIMIZERS, "the trace does not know this optimizer"),
)
SECONDS_TO_TRACE = 300
MAX_TRACE_BYTES = 12 * 2**30
"""Memory of the tracing process; it takes about 0.7 GiB, whatever the size of the model."""

OnProgress = Callable[[float], None]
"""Told the share that is done, from 0 to 1."""
IsCancelled = Callable[[], bool]
"""Asked now and then whether anybody still waits."""


def _silent(share: float) -> None:
    pass


def _never() -> bool:
    return False


@dataclass(frozen=True)
class ExactEstimate:
    """What one traced training step takes."""

    phases: Mapping[Phase, int]
    """Allocated peak of each phase, in bytes: load, forward, backward, optimizer_step, eval."""
    peak_allocated_bytes: int
    peak_reserved_bytes: int
    seconds: float
    """How long the trace took, or had taken when it was made."""
    num_parameters: int
    num_trainable_parameters: int
    paged_bytes: int
    """Optimizer states in managed memory, which are no part of the peaks."""


TRACED_NOTES: Mapping[str, str] = {
    "weights": "The model as it is loaded, and its adapter.",
    "temporary": "All that a step makes besides, optimizer states among it: a trace knows sizes, not purposes.",
}


@dataclass(frozen=True)
class Request:
    """One job to be traced, for a model of this config.json, on this card."""

    job: JobSpec
    config: Mapping[str, Any]
    gpu: Gpu

    def to_json(self) -> dict[str, Any]:
        """What the child reads."""
        card = {
            "compute_capability": list(self.gpu.compute_capability),
            "supports_bf16": self.gpu.supports_bf16,
        }
        return {
            "job": self.job.model_dump(include=set(FIELDS)),
            "config": dict(self.config),
            "card": card,
        }

    @property
    def key(self) -> str:
        """A name for all that the outcome depends on."""
        asked = self.to_json()
        for name in NOT_MEMORY:
            del asked["job"][name]
        text = json.dumps([asked, _versions(), _program_digest()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def as_traced(job: JobSpec) -> JobSpec:
    """The job whose step is traced for another: that of the model as it is, before torch.compile fuses anything."""
    return job.model_copy(update={"torch_compile": False, "activation_memory_budget": 1.0})


def check_exactly(
    job: JobSpec,
    config: Mapping[str, Any],
    gpu: Gpu,
    cache_dir: Path,
    on_progress: OnProgress = _silent,
    *,
    is_cancelled: IsCancelled = _never,
) -> ExactEstimate:
    """The memory of a job on a card by tracing it, or from the cache; `config` is the model's config.json.

    Takes seconds, in any thread. Works for every decoder that transformers knows. Raises TraceError, also when it is
    called off.
    """
    request = Request(job, config, gpu)
    place = cache_dir / f"{request.key}.json"
    with suppress(OSError, ValueError, TypeError):  # absent, torn or of another shape: traced anew
        return ExactEstimate(**json.loads(place.read_text(encoding="utf-8")))
    (found,) = trace_all((request,), on_progress, is_cancelled)
    if isinstance(found, TraceError):
        raise found
    _remember(place, found)
    return found


def estimate_exactly(
    job: JobSpec,
    config: Mapping[str, Any],
    gpu: Gpu,
    cache_dir: Path,
    on_progress: OnProgress = _silent,
    *,
    is_cancelled: IsCancelled = _never,
) -> MemoryEstimate:
    """The same as an estimate, for a model whose architecture has none of its own. Raises TraceError.

    What a step makes is one component: a trace knows sizes, not purposes.
    """
    traced = check_exactly(job, config, gpu, cache_dir, on_progress, is_cancelled=is_cancelled)
    loaded = traced.phases["load"]
    found = Found(
        phases=traced.phases,
        at_peak={"weights": loaded, "temporary": traced.peak_allocated_bytes - loaded},
        gap_bytes=traced.peak_reserved_bytes - traced.peak_allocated_bytes,
        paged_bytes=traced.paged_bytes,
        num_parameters=traced.num_parameters,
        num_trainable_parameters=traced.num_trainable_parameters,
    )
    return estimate_of(found, gpu, spread_of(job, gpu, job.max_length), {**NOTES, **TRACED_NOTES})


def trace_all(
    requests: Iterable[Request],
    on_progress: OnProgress = _silent,
    is_cancelled: IsCancelled = _never,
) -> Iterator[ExactEstimate | TraceError]:
    """Every request traced by one child process; what cannot be traced is an error in its place.

    Once the child has died, or taken too long, the rest is that error too.
    """
    with Child(PROGRAM, Limits(data_bytes=MAX_TRACE_BYTES)) as child:
        for request in requests:
            objection = next((each for each in OBJECTIONS if each.applies(request.job)), None)
            if objection:
                yield _cannot_trace(objection.why)
            else:
                yield _ask(child, request, on_progress, is_cancelled)


def _cannot_trace(why: str) -> TraceError:
    return TraceError(
        Problem("exact check", why, "use the estimate, or choose a model that has one")
    )


def _ask(
    child: Child, request: Request, on_progress: OnProgress, is_cancelled: IsCancelled
) -> ExactEstimate | TraceError:
    """Return the child's answer to one request."""
    try:
        found = child.ask(
            request.to_json(),
            SECONDS_TO_TRACE,
            on_progress=on_progress,
            is_cancelled=is_cancelled,
        )
    except ChildError as error:
        return _cannot_trace(f"the trace gave no estimate: {error.reason}")
    return _read(found, request)


def _read(found: Mapping[str, Any], request: Request) -> ExactEstimate:
    """One answer. What is reserved beyond what is allocated is that of the deepest model that was traced."""
    gap_bytes = 0
    if request.gpu.compute_capability != (0, 0):
        allocator = Allocator(expandable_segments=True)
        allocator.replay(found["log"], found["sizes"])
        gap_bytes = allocator.peak_reserved_bytes - allocator.peak_allocated_bytes
    allocated = found["peak_allocated_bytes"]
    others = {
        name: found[name]
        for name in ("seconds", "num_parameters", "num_trainable_parameters", "paged_bytes")
    }
    return ExactEstimate(found["phases"], allocated, allocated + gap_bytes, **others)


def _remember(place: Path, found: ExactEstimate) -> None:
    """Writes to the cache; a cache that cannot be written to only costs time."""
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        write_json(place, asdict(found))


@cache
def _versions() -> dict[str, str]:
    """Of the libraries whose code is traced."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


@cache
def _program_digest() -> str:
    """Of the sources that a trace runs: what it finds changes with them."""
    digest = hashlib.sha256()
    for folder in TRACED_CODE:
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()
