"""Compare the memory estimate, and the formulas of other tools, with published measurements.

    python benchmarks/memory_accuracy.py [--rows FILE.jsonl] [--json] [--time]

Prints one line per group and metric: number of rows, then median, 90th percentile and worst of the
absolute error, and its mean with sign (bias), as shares of the measured value. Asserts nothing;
tests/memory/test_accuracy.py does.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import memory_scores
from benchmarks.memory_scores import Accuracy
from core.job import JobSpec
from core.memory import estimate
from core.memory.extrapolate import extrapolate_peaks
from core.memory.program import Program
from core.memory.step import dry_run
from core.models import Gpu, ModelShape, gpus
from core.training.contract.methods import METHODS
from tests.measured.rows import MEASURED_PEAKS, MeasuredRow, read_rows

GIB = 2**30
REPEATS = 5
LLAMA_3: Mapping[str, object] = {
    "model_type": "llama",
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}


def by_group(rows: Iterable[MeasuredRow]) -> Mapping[tuple[str, str], list[MeasuredRow]]:
    """Return the rows of each (group, metric), sorted."""
    groups: dict[tuple[str, str], list[MeasuredRow]] = {}
    for row in rows:
        groups.setdefault((row.group, row.metric), []).append(row)
    return dict(sorted(groups.items()))


def accuracies(rows: Iterable[MeasuredRow]) -> list[Accuracy]:
    """Return the accuracy of every group."""
    return [
        Accuracy.of(group, metric, (row.error for row in members))
        for (group, metric), members in by_group(rows).items()
    ]


# Formulas that other tools publish. Each function returns the total in bytes that the tool shows.


def _num_trainable(program: Program) -> int:
    shape = program.shape
    if program.lora is None:
        return shape.num_parameters
    sizes = [size for name, size in program.linears.items() if program.has_adapter(name)]
    per_rank = sum(num_out + num_in for num_out, num_in in sizes)
    return shape.num_hidden_layers * program.lora.rank * per_rank


def unsloth(program: Program) -> float:
    """Unsloth Studio, VRAM_ESTIMATION.md: 4-bit weights at 5 bits, no loss term, 1.4 GiB flat."""
    shape, is_full = program.shape, program.lora is None
    num_linear = sum(num_out * num_in for num_out, num_in in program.linears.values())
    num_linear *= shape.num_hidden_layers
    linear_bytes = 2 / 3.2 if program.quantization else 2
    weights = num_linear * linear_bytes + (shape.num_parameters - num_linear) * 2
    trained = _num_trainable(program)
    states = trained * (4 if program.optimizer.state_itemsize == 1 else 6)
    keys = shape.hidden_size // shape.num_attention_heads * shape.num_key_value_heads
    width = shape.hidden_size + 2 * keys + 1 + 2 * shape.intermediate_size
    layers = shape.num_hidden_layers
    if program.checkpointing:
        layers = 2 if is_full else 1
    activations = 2.5 * program.num_tokens * width * layers
    if program.attention == "eager":
        scores = program.batch_size * shape.num_attention_heads * program.sequence_length**2
        activations = max(activations, 24 * scores * layers)
    floor = 0.15 * weights
    adapters = 0
    if not is_full:
        floor = min(floor, max(activations, states))
        adapters = 2 * trained
    gradients = max(2 * trained, floor)
    return weights + adapters + states + gradients + activations + 1.4 * GIB


def eleuther(program: Program) -> float:
    """EleutherAI's calc_transformer_mem.py: mixed precision, sbh(10 + 24 + 5as/h) or 2sbhL."""
    shape = program.shape
    factor: float = 2
    if not program.checkpointing:
        factor = 34 + 5 * shape.num_attention_heads * program.sequence_length / shape.hidden_size
    activations = program.num_tokens * shape.hidden_size * shape.num_hidden_layers * factor
    if program.lora is None:
        return shape.num_parameters * 18 + activations
    return shape.num_parameters * 2 + _num_trainable(program) * 18 + activations


def llama_factory(program: Program) -> float:
    """LLaMA-Factory's README table: 60, 16 and 6 GB for a 7B model, full, LoRA and QLoRA."""
    if program.lora is None:
        return program.shape.num_parameters * 8.5
    return program.shape.num_parameters * (0.85 if program.quantization else 2.3)


def accelerate(program: Program) -> float:
    """`accelerate estimate-memory`: four times the float32 model, "training using Adam"."""
    return program.shape.num_parameters * 16


def gpu_poor(program: Program) -> float:
    """gpu_poor: about 15 saved tensors per layer, a seventh with checkpointing, 650 MB flat."""
    shape, tokens = program.shape, program.sequence_length
    hidden, width = tokens * shape.hidden_size, tokens * shape.intermediate_size
    attention = hidden * 16 + tokens**2 * shape.num_attention_heads * 8
    mlp = hidden * 4 + width * 12
    norms = tokens * 8 + hidden * 12
    share = 0.15 if program.checkpointing else 1
    activations = (attention + mlp + norms) * shape.num_hidden_layers * program.batch_size * share
    weights = shape.num_parameters * (0.5 if program.quantization else 2)
    return weights + activations + _num_trainable(program) * 12 + 650e6


OTHERS: tuple[Callable[[Program], float], ...] = (
    unsloth,
    eleuther,
    llama_factory,
    accelerate,
    gpu_poor,
)


def fitcheck_median(rows: Iterable[MeasuredRow]) -> float | None:
    """Return the median error of fitcheck-llm's predictions of whole processes.

    They are shipped with its measurements.
    """
    errors = []
    for row in rows:
        extra = row.source["spec"].get("extra") or {}
        measured, predicted = extra.get("process_mib"), extra.get("fitcheck_total_mib")
        if row.metric == "reserved" and measured and predicted:
            errors.append(abs(predicted / measured - 1))
    return statistics.median(errors) if errors else None


def print_table(rows: Iterable[MeasuredRow]) -> None:
    """Print one line per group, with the median error of each other tool on the same rows."""
    names = [*(other.__name__ for other in OTHERS), "fitcheck"]
    heads = "".join(f"{head:>9}" for head in ("median", "p90", "worst", "bias"))
    print(f"{'group':26}{'metric':11}{'n':>4}{heads}   median of", *names)
    for (group, metric), members in by_group(rows).items():
        ours = Accuracy.of(group, metric, (row.error for row in members))
        medians: list[float | None] = []
        for other in OTHERS:
            errors = [abs(other(row.program) / row.value_bytes - 1) for row in members]
            medians.append(statistics.median(errors))
        medians.append(fitcheck_median(members))
        shares = "".join(
            f"{share:9.2%}" for share in (ours.median, ours.p90, ours.worst, ours.bias)
        )
        shown = ["-" if median is None else f"{median:.1%}" for median in medians]
        theirs = " ".join(f"{text:>{len(name)}}" for name, text in zip(names, shown, strict=True))
        print(f"{group:26}{metric:11}{ours.n:4}{shares}{'':13}{theirs}")


def print_times() -> None:
    """Print the milliseconds of a first estimate by model and method: the best of five."""
    sizes = {
        "8B": (4096, 14336, 32),
        "70B": (8192, 28672, 80),
        "8B, 1000 layers": (4096, 14336, 1000),
    }
    card = gpus()["h100"]
    print(f"{'milliseconds':18}", *(f"{method:>10}" for method in METHODS))
    for name, (hidden, width, layers) in sizes.items():
        shape = ModelShape.from_config(
            {
                **LLAMA_3,
                "hidden_size": hidden,
                "intermediate_size": width,
                "num_hidden_layers": layers,
                "num_attention_heads": hidden // 128,
            }
        )
        cells = []
        for method in METHODS:
            job = JobSpec.parse({"method": method})
            seconds = min(_seconds(job, shape, card) for _ in range(REPEATS))
            cells.append(f"{1000 * seconds:10.1f}")
        print(f"{name:18}", *cells)


def _seconds(job: JobSpec, shape: ModelShape, card: Gpu) -> float:
    """Return how long an estimate takes whose result is in no cache."""
    for cached in (estimate, extrapolate_peaks, dry_run):
        cached.cache_clear()
    start = time.perf_counter()
    estimate(job, shape, card)
    return time.perf_counter() - start


def main() -> None:
    """Read the rows, simulate their programs and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--rows", type=Path, default=MEASURED_PEAKS, help="measurements, one JSON object a line"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--time", action="store_true", help="print how long an estimate takes instead"
    )
    options = parser.parse_args()
    if options.time:
        print_times()
        return
    published = read_rows(options.rows)
    ours = memory_scores.read_rows(options.rows).values()
    if options.json:
        groups = (*accuracies(published), *memory_scores.accuracies(ours))
        print(json.dumps({"groups": [asdict(group) for group in groups]}, indent=2))
    elif ours:
        memory_scores.print_scores(ours, as_json=False)
    else:
        print_table(published)


if __name__ == "__main__":
    main()
