"""Compare the memory estimate of one rank of several with a step that is taken by that rank.

    python benchmarks/rank_agreement.py [--quick]

A process group without other processes lets the real FSDP2 and DDP wrap the model as accelerate
does, and take a step on tensors without data, whose bytes are counted. Prints a line for each job:
what rank 0 allocates at most, what the estimate says, and the error; the same error for loading
alone, where FSDP2 moves a model from main memory group by group. Needs no GPU, and ten minutes.
"""

import argparse
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.trace_agreement import FAMILIES, SIZES
from core.job import JobSpec, TraceError
from core.memory import estimate
from core.memory.trace_check import TraceRequest, trace_all
from core.models import ModelShape, gpus

MIB = 2**20
GPU = "rtx-4090"
BASE: Mapping[str, object] = {
    "gpu": GPU,
    "num_devices": 2,
    "parallelism": "fsdp",
    "max_length": 512,
    "gradient_checkpointing": True,
    "optim": "adamw_torch_fused",
}
METHODS = ("full", "freeze", "lora", "qlora")
COMPARED = ("llama", "qwen2", "qwen3", "gemma3_text", "phi3", "mixtral")
VARIANTS: tuple[Mapping[str, object], ...] = (
    {"num_devices": 4},
    {"num_devices": 8},
    {"gradient_checkpointing": False},
    {"gradient_accumulation_steps": 1},
    {"checkpoint_every_n_layers": 2, "num_devices": 4},
    {"max_length": 2048, "per_device_train_batch_size": 1},
    {"packing": True},
    {"optim": "sgd"},
    {"parallelism": "ddp"},
    {"parallelism": "ddp", "num_devices": 8, "gradient_checkpointing": False},
)
EXTRAS: tuple[Mapping[str, object], ...] = (
    {"method": "full", "optim": "adamw_torch"},
    {"method": "full", "dtype": "float32"},
    {"method": "lora", "dtype": "float32"},
    {"method": "lora", "stage": "dpo"},
    {"method": "qlora", "stage": "dpo"},
    {"method": "full", "stage": "dpo"},
    {"method": "full", "stage": "dpo", "num_devices": 8},
    {"method": "freeze", "stage": "dpo"},
    {"method": "full", "stage": "dpo", "parallelism": "ddp"},
    {"method": "full", "stage": "kto"},
    {"method": "full", "stage": "reward"},
    {"method": "qlora", "stage": "reward"},
    {"method": "lora", "stage": "orpo"},
    {"method": "full", "stage": "cpo"},
    {"method": "lora", "stage": "rloo", "beta": 0.1},
    {"method": "lora", "use_dora": True},
    {"method": "lora", "modules_to_save": "lm_head"},
    {"method": "qlora", "modules_to_save": "embed_tokens,lm_head"},
    {"method": "lora", "per_device_train_batch_size": 1},
    {"method": "qlora", "per_device_train_batch_size": 1},
    {"method": "full", "stage": "grpo"},
    {"method": "full", "stage": "grpo", "beta": 0.1, "num_devices": 8},
    {"method": "lora", "stage": "grpo"},
    {"method": "lora", "stage": "grpo", "parallelism": "ddp"},
    {"method": "qlora", "stage": "grpo", "num_devices": 4},
    {"method": "lora-8bit", "parallelism": "ddp"},
    {"method": "full", "parallelism": "ddp", "optim": "adamw_8bit"},
)


@dataclass(frozen=True)
class Compared:
    """Allocated peak of rank 0, as counted and as estimated."""

    family: str
    fields: Mapping[str, object]
    """Fields of the job that differ from BASE."""
    counted_bytes: int
    estimated_bytes: int
    load_error: float
    """Error of the peak while the model is loaded, likewise."""

    @property
    def error(self) -> float:
        """Error of the estimate as a share of what was counted."""
        return self.estimated_bytes / self.counted_bytes - 1


def cases(is_quick: bool = False) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Yield (family, fields that differ from BASE) of each job to compare."""
    if is_quick:
        yield from (("llama", {"method": method}) for method in METHODS)
        yield "qwen2", {"method": "full", "num_devices": 8}
        yield "llama", {"method": "full", "parallelism": "ddp"}
        yield "llama", {"method": "qlora", "parallelism": "ddp"}
        yield "llama", {"method": "full", "stage": "dpo"}
        yield "llama", {"method": "lora", "stage": "grpo"}
        return
    for method in METHODS:
        yield from ((family, {"method": method}) for family in COMPARED)
        yield from (("llama", {"method": method, **more}) for more in VARIANTS)
    yield from (("llama", more) for more in EXTRAS)


def compare(
    jobs: Sequence[tuple[str, Mapping[str, object]]],
) -> Iterator[Compared | TraceError]:
    """Take a step of each job as rank 0, and estimate it."""
    requests = [_request(family, fields) for family, fields in jobs]
    for request, (family, fields), result in zip(requests, jobs, trace_all(requests), strict=True):
        if isinstance(result, TraceError):
            yield result
            continue
        found = estimate(request.job, ModelShape.from_config(request.config), request.gpu)
        counted = result.peak_allocated_bytes
        load_error = found.phases["load"] / result.phases["load"] - 1
        yield Compared(family, fields, counted, found.peak_allocated_bytes, load_error)


def _request(family: str, fields: Mapping[str, object]) -> TraceRequest:
    config = {"model_type": family, **SIZES, **FAMILIES[family]}
    return TraceRequest(JobSpec.parse({**BASE, **fields}), config, gpus()[GPU])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few jobs only")
    jobs = list(cases(parser.parse_args(arguments).quick))
    heads = ("family", "job", "rank 0, MiB", "estimate, MiB", "error", "of loading")
    print(f"| {' | '.join(heads)} |\n|---|---|--:|--:|--:|--:|")
    errors, load_errors = [], []
    for (family, fields), found in zip(jobs, compare(jobs), strict=True):
        said = ", ".join(f"{name} {value}" for name, value in fields.items())
        if isinstance(found, TraceError):
            print(f"| {family} | {said} | {found} | | | |", flush=True)
            continue
        errors.append(abs(found.error))
        load_errors.append(abs(found.load_error))
        counted, estimated = found.counted_bytes / MIB, found.estimated_bytes / MIB
        numbers = (
            f"{counted:,.0f} | {estimated:,.0f} | {found.error:+.2%} | {found.load_error:+.2%}"
        )
        print(f"| {family} | {said} | {numbers} |", flush=True)
    print(f"\n{len(errors)} jobs: median {statistics.median(errors):.2%}, worst {max(errors):.2%}")
    print(f"While loading: worst {max(load_errors):.2%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
