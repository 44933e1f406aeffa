"""Measures what watching costs: a training of ours, watched and as plain TRL by turns, in one process on the processor.

    python benchmarks/watching_overhead.py [--pairs N] [--steps N] [--logging-steps N] [--json]

Watching is all that Tailor adds to a step of TRL's trainer: metrics, phases, the health of the training, the status of
the run and the wish to stop. Samples, evaluations and checkpoints are off. It is measured twice in the same run
(watched_by_turns.py): the seconds within the code that watches, as a share of the rest of the same steps, by the clock
(writing to the disk counts) and of processor time (waiting for others does not); and, in case that code slowed down
what is not its own, the watched turns against the plain ones beside them. Others on a shared machine make single turns
a tenth longer or shorter: so of the differences the median counts, and all have the interval in which they lie with
95 % certainty. Asserts nothing.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import comb
from pathlib import Path
from types import MappingProxyType

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.memory_grid import LLAMA_1B
from benchmarks.memory_grid import Point as MemoryPoint
from benchmarks.memory_grid import job as memory_job
from benchmarks.memory_inputs import write_model, write_rows
from benchmarks.speed_grid import ROOT, make_run_folder
from benchmarks.training_speed import started
from core.job import JobSpec
from core.training.contract.stages import STAGES

PROGRAM = ROOT / "benchmarks" / "watched_by_turns.py"
SIZES: Mapping[str, object] = MappingProxyType(
    {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 6, "vocab_size": 2048}
)
"""Of the model: a step takes a third of a second to one, as one of an 8B does on the fastest card."""
STEADY = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
}
"""Freed memory is kept: else 25,000 page faults a step, more or fewer as the heap happens to lie."""
NUM_ROWS, LENGTH, BATCH = 256, 256, 8
MEASURES = ("clock", "processor")
WARM_UP_STEPS = 10
"""The memory of the first three steps is measured besides; nothing of that is left later."""
CERTAINTY, ERRORS = 0.95, 1.96
"""How many standard errors a mean is off with that certainty."""


@dataclass(frozen=True)
class Share:
    """What watching takes, as a share of a step without it."""

    share: float
    low: float
    high: float
    """The interval in which it lies with 95 % certainty."""

    def __str__(self) -> str:
        return f"{self.share:+.2%} (95 % interval {self.low:+.2%} to {self.high:+.2%})"


Turn = Mapping[str, float]
"""A line of turns.json."""


def measure(folder: Path, job: JobSpec, num_pairs: int, num_steps: int) -> list[Turn]:
    """The turns of one training, in their order. Raises RuntimeError if it fails."""
    make_run_folder(folder, job)
    program = [sys.executable, str(PROGRAM), str(num_pairs), str(num_steps)]
    with started(program, folder, hides_gpu=True, **STEADY) as process:
        if process.wait():
            raise RuntimeError(
                (folder / "log.txt").read_text(encoding="utf-8", errors="replace")[-2000:]
            )
    return list(json.loads((folder / "turns.json").read_text(encoding="utf-8")))


def make_job(folder: Path, num_pairs: int, num_steps: int, logging_steps: int) -> JobSpec:
    """Writes a model and its rows; the job that trains it for as long as all turns take."""
    config = MemoryPoint(LLAMA_1B, memory_job("lora", BATCH, LENGTH), is_toy=True).config | SIZES
    write_model(folder / "model", config | {"architectures": ["LlamaForCausalLM"]}, has_holes=False)
    write_rows(folder / "run" / "data" / "train.jsonl", (LENGTH,) * NUM_ROWS, STAGES["sft"])
    return JobSpec.parse(
        {
            "model": str(folder / "model"),
            "dataset": "data/train.jsonl",
            "assistant_only_loss": False,
            "eval_fraction": 0,
            "num_samples": 0,
            "save_steps": 10**6,
            "max_length": LENGTH,
            "max_steps": WARM_UP_STEPS + 2 * num_pairs * (num_steps + 1) + 1,
            "logging_steps": logging_steps,
            "per_device_train_batch_size": BATCH,
            "gradient_accumulation_steps": 1,
            "gradient_checkpointing": False,
            "learning_rate": 1e-4,
        }
    )


def own_share(turns: Sequence[Turn], measure: str) -> Share:
    """The time within the code that watches over that of the rest of the watched steps."""
    watched = [turn for turn in turns if turn["is_watched"]]
    shares = [turn[f"own_{measure}"] / (turn[measure] - turn[f"own_{measure}"]) for turn in watched]
    mean, error = statistics.mean(shares), statistics.stdev(shares) / len(shares) ** 0.5
    return Share(mean, mean - ERRORS * error, mean + ERRORS * error)


def share_by_turns(turns: Sequence[Turn], measure: str) -> Share:
    """The median of what a watched turn takes more than the plain one beside it."""
    pairs = [
        sorted(pair, key=lambda turn: turn["is_watched"])
        for pair in zip(turns[::2], turns[1::2], strict=True)
    ]
    shares = sorted(watched[measure] / plain[measure] - 1 for plain, watched in pairs)
    rank = rank_of_interval(len(shares))
    return Share(statistics.median(shares), shares[rank], shares[-1 - rank])


def rank_of_interval(count: int) -> int:
    """So many of the lowest and of the highest values lie outside the interval of their median.

    The median of what they are drawn from is above the r lowest unless fewer than r are below it, as if that many coins
    had shown heads.
    """
    outside, rank = 0.0, 0
    while rank < (count - 1) // 2:
        outside += 2 * comb(count, rank) / 2**count
        if outside > 1 - CERTAINTY:
            break
        rank += 1
    return max(0, rank - 1)


def main() -> int:
    """Read the flags, train, print. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=40, help="how often both have their turn")
    parser.add_argument("--steps", type=int, default=2, help="optimizer steps of a turn that count")
    parser.add_argument(
        "--logging-steps", type=int, default=1, help="steps between two lines that both log"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="watching-overhead-") as name:
        job = make_job(Path(name), options.pairs, options.steps, options.logging_steps)
        turns = measure(Path(name) / "run", job, options.pairs, options.steps)
    print(json.dumps(found_in(turns)) if options.json else "\n".join(told(turns)))
    return 0


def found_in(turns: Sequence[Turn]) -> dict[str, Mapping[str, float]]:
    """All shares, for a program."""
    found = {f"own_{measure}": own_share(turns, measure) for measure in MEASURES}
    return {
        name: asdict(share)
        for name, share in (found | {"turns": share_by_turns(turns, "processor")}).items()
    }


def told(turns: Sequence[Turn]) -> Iterator[str]:
    """All shares, for a person."""
    watched = [turn for turn in turns if turn["is_watched"]]
    for measure in MEASURES:
        own, whole = (
            1000 * statistics.mean(turn[name] for turn in watched)
            for name in (f"own_{measure}", measure)
        )
        yield f"{measure:9}  {own:.1f} of {whole:.0f} ms a step: {own_share(turns, measure)}"
    yield f"by turns   processor time of {len(watched)} pairs: {share_by_turns(turns, 'processor')}"


if __name__ == "__main__":
    sys.exit(main())
