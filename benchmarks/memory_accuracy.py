"""How far the memory estimate is from published measurements, and how far the formulas of other tools are.

    python benchmarks/memory_accuracy.py [--rows FILE.jsonl] [--json] [--time]

Prints one line per group and metric: number of rows, then median, 90th percentile and worst of the absolute error and
its mean with sign, as shares of the measured value. Asserts nothing; tests/memory/test_accuracy.py does.
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
from core.memory.program import Program
from core.models import Gpu, ModelShape, gpus
from core.training.contract.methods import METHODS
from tests.measured.rows import MEASURED_PEAKS, MeasuredRow, read_rows

GIB = 2**30
LLAMA_3: Mapping[str, object] = {
    "model_type": "llama",
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}


def by_group(rows: Iterable[MeasuredRow]) -> Mapping[tuple[str, str], list[MeasuredRow]]:
    """Rows by (group, metric), sorted."""
    groups: dict[tuple[str, str], list[MeasuredRow]] = {}
    for row in rows:
        groups.setdefault((row.group, row.metric), []).append(row)
    return dict(sorted(groups.items()))


def accuracies(rows: Iterable[MeasuredRow]) -> list[Accuracy]:
    """The accuracy of every group."""
    return [
        Accuracy.of(*key, (row.error for row in found)) for key, found in by_group(rows).items()
    ]


# Other tools, from their published formulas. Each gives the total that the tool would show, in bytes.


def _trainable(program: Program) -> int:
    """Parameters that train."""
    shape = program.shape
    if program.lora is None:
        return shape.num_parameters
    sizes = (program.linears[name] for name in program.linears if program.has_adapter(name))
    return (
        shape.num_hidden_layers
        * program.lora.rank
        * sum(num_out + num_in for num_out, num_in in sizes)
    )


def unsloth(program: Program) -> float:
    """Unsloth Studio, VRAM_ESTIMATION.md: 4-bit weights at 5 bits, no loss term, 1.4 GiB flat."""
    shape, tokens = program.shape, program.num_tokens
    linear = shape.num_hidden_layers * sum(
        num_out * num_in for num_out, num_in in program.linears.values()
    )
    rest = shape.num_parameters - linear
    weights = linear * (2 / 3.2 if program.quantization else 2) + rest * 2
    trained = _trainable(program)
    states = trained * (4 if program.optimizer.state_itemsize == 1 else 6)
    keys = shape.hidden_size // shape.num_attention_heads * shape.num_key_value_heads
    per_layer = 2.5 * tokens * (shape.hidden_size + 2 * keys + 1 + 2 * shape.intermediate_size)
    layers = (
        (2 if program.lora is None else 1) if program.checkpointing else shape.num_hidden_layers
    )
    activations = per_layer * layers
    if program.attention == "eager":
        scores = program.batch_size * shape.num_attention_heads * program.sequence_length**2
        activations = max(activations, 24 * scores * layers)
    floor = (
        0.15 * weights if program.lora is None else min(0.15 * weights, max(activations, states))
    )
    gradients = max(2 * trained, floor)
    return (
        weights
        + (2 * trained if program.lora else 0)
        + states
        + gradients
        + activations
        + 1.4 * GIB
    )


def eleuther(program: Program) -> float:
    """EleutherAI's cookbook, calc_transformer_mem.py: mixed precision, sbh(10 + 24 + 5as/h) or 2sbhL."""
    shape = program.shape
    per_layer = 34 + 5 * shape.num_attention_heads * program.sequence_length / shape.hidden_size
    factor = 2 if program.checkpointing else per_layer
    activations = program.num_tokens * shape.hidden_size * shape.num_hidden_layers * factor
    trained = _trainable(program)
    return (
        shape.num_parameters * 18
        if program.lora is None
        else shape.num_parameters * 2 + trained * 18
    ) + activations


def llama_factory(program: Program) -> float:
    """LLaMA-Factory's README table: 60, 16 and 6 GB for a 7B model, full, LoRA and QLoRA."""
    per_parameter = 8.5 if program.lora is None else 0.85 if program.quantization else 2.3
    return program.shape.num_parameters * per_parameter


def accelerate(program: Program) -> float:
    """`accelerate estimate-memory`: four times the float32 model, "training using Adam"."""
    return program.shape.num_parameters * 16


def gpu_poor(program: Program) -> float:
    """gpu_poor: some fifteen saved tensors per layer, a seventh of them under checkpointing, 650 MB flat."""
    shape, tokens = program.shape, program.sequence_length
    hidden, width = tokens * shape.hidden_size, tokens * shape.intermediate_size
    attention = hidden * 16 + tokens**2 * shape.num_attention_heads * 8
    mlp = hidden * 4 + width * 12
    norms = tokens * 8 + hidden * 12
    share = 0.15 if program.checkpointing else 1
    activations = (attention + mlp + norms) * shape.num_hidden_layers * program.batch_size * share
    weights = shape.num_parameters * (0.5 if program.quantization else 2)
    return weights + activations + _trainable(program) * 12 + 650e6


OTHERS: tuple[Callable[[Program], float], ...] = (
    unsloth,
    eleuther,
    llama_factory,
    accelerate,
    gpu_poor,
)


def fitcheck_median(rows: Iterable[MeasuredRow]) -> float | None:
    """Median error of fitcheck-llm's own predictions, shipped with its measurements: the whole process."""
    extras = [row.source["spec"].get("extra") or {} for row in rows if row.metric == "reserved"]
    errors = [
        abs(extra["fitcheck_total_mib"] / extra["process_mib"] - 1)
        for extra in extras
        if extra.get("process_mib") and extra.get("fitcheck_total_mib")
    ]
    return statistics.median(errors) if errors else None


def print_table(rows: Iterable[MeasuredRow]) -> None:
    """One line per group, then the median error of each other tool on the same rows."""
    names = [other.__name__ for other in OTHERS] + ["fitcheck"]
    print(
        f"{'group':26}{'metric':11}{'n':>4}{'median':>9}{'p90':>9}{'worst':>9}{'bias':>9}   median of",
        *names,
    )
    for (group, metric), found in by_group(rows).items():
        ours = Accuracy.of(group, metric, (row.error for row in found))
        medians: list[float | None] = [
            statistics.median(abs(other(row.program) / row.value_bytes - 1) for row in found)
            for other in OTHERS
        ]
        medians.append(fitcheck_median(found))
        theirs = " ".join(
            f"{'-' if m is None else f'{m:.1%}':>{len(n)}}"
            for n, m in zip(names, medians, strict=True)
        )
        shares = "".join(
            f"{share:9.2%}" for share in (ours.median, ours.p90, ours.worst, ours.bias)
        )
        print(f"{group:26}{metric:11}{ours.n:4}{shares}{'':13}{theirs}")


def print_times() -> None:
    """Milliseconds of a first estimate, by model and method: the best of five, none of them from the cache."""
    depths = {
        "8B": (4096, 14336, 32),
        "70B": (8192, 28672, 80),
        "8B, 1000 layers": (4096, 14336, 1000),
    }
    card = gpus()["h100"]
    print(f"{'milliseconds':18}", *(f"{method:>10}" for method in METHODS))
    for name, (hidden, width, layers) in depths.items():
        config = {
            **LLAMA_3,
            "hidden_size": hidden,
            "intermediate_size": width,
            "num_hidden_layers": layers,
        }
        shape = ModelShape.from_config({**config, "num_attention_heads": hidden // 128})
        jobs = [JobSpec.parse({"method": method}) for method in METHODS]
        print(
            f"{name:18}",
            *(f"{1000 * min(_seconds(job, shape, card) for _ in range(5)):10.1f}" for job in jobs),
        )


def _seconds(job: JobSpec, shape: ModelShape, card: Gpu) -> float:
    estimate.cache_clear()
    start = time.perf_counter()
    estimate(job, shape, card)
    return time.perf_counter() - start


def main() -> None:
    """Read the rows, play their programs, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument(
        "--rows", type=Path, default=MEASURED_PEAKS, help="measurements, one JSON object a line"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--time", action="store_true", help="print how long an estimate takes instead"
    )
    options = parser.parse_args()
    if options.time:
        return print_times()
    rows, ours = read_rows(options.rows), memory_scores.read_rows(options.rows).values()
    if options.json:
        groups = (*accuracies(rows), *memory_scores.accuracies(ours))
        print(json.dumps({"groups": [asdict(group) for group in groups]}, indent=2))
    elif ours:
        memory_scores.print_scores(ours, as_json=False)
    else:
        print_table(rows)
    return None


if __name__ == "__main__":
    main()
