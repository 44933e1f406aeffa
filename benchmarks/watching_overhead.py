"""Measure what monitoring a training costs: our program, with and without its monitor, by turns.

    python benchmarks/watching_overhead.py [--pairs N] [--steps N] [--logging-steps N] [--json]

Our program adds a monitor to TRL's trainer: metrics, phases, divergence, status.json and the
request to stop. One training on the processor runs with and without it by turns, as
watched_by_turns.py does it, without samples, evaluations and checkpoints. Its cost is measured in
two ways:

- Seconds within the monitoring code, as a share of the rest of the same steps: in wall time, which
  includes writing to the disk, and in processor time, which leaves out waiting for other programs.
- Seconds of a step with monitoring compared with a step of the neighbouring turn without it. This
  also finds what monitoring slows down in other code.

Other programs on a shared machine make single turns a tenth longer or shorter, so the second way
takes the median. Both print the interval in which the true value lies with 95 % certainty. Asserts
nothing.
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

from benchmarks.memory_grid import LLAMA_1B, Point
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
"""Sizes of the model. A step takes 0.3 to 1 second, as one of an 8B on the fastest card does."""
STEADY = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
}
"""Environment that keeps freed memory in the process. Otherwise a step has about 25,000 page
faults, and their number depends on chance."""
NUM_ROWS, LENGTH, BATCH = 256, 256, 8
MEASURES = ("clock", "processor")
WARM_UP_STEPS = 10
"""Steps before the first turn. The program measures memory in the first three, which takes time."""
CERTAINTY = 0.95
STANDARD_ERRORS = 1.96
"""A mean is off by at most so many standard errors with that certainty."""
MAX_ERROR_CHARACTERS = 2000


@dataclass(frozen=True)
class Share:
    """Cost of monitoring, as a share of a step without it."""

    share: float
    low: float
    high: float
    """End of the interval in which the share lies with 95 % certainty; `low` is its beginning."""

    def __str__(self) -> str:
        return f"{self.share:+.2%} (95 % interval {self.low:+.2%} to {self.high:+.2%})"


Turn = Mapping[str, float]
"""One item of turns.json."""


def measure(folder: Path, job: JobSpec, num_pairs: int, num_steps: int) -> list[Turn]:
    """Return the turns of one training in their order. Raises RuntimeError if it fails."""
    make_run_folder(folder, job)
    program = [sys.executable, str(PROGRAM), str(num_pairs), str(num_steps)]
    with started(program, folder, hides_gpu=True, **STEADY) as process:
        if process.wait():
            log = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")
            raise RuntimeError(log[-MAX_ERROR_CHARACTERS:])
    return list(json.loads((folder / "turns.json").read_text(encoding="utf-8")))


def make_job(folder: Path, num_pairs: int, num_steps: int, logging_steps: int) -> JobSpec:
    """Write a model and its rows; return a job with enough steps for all turns."""
    config = Point(LLAMA_1B, memory_job("lora", BATCH, LENGTH), is_toy=True).config | SIZES
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
    """Return the time within the monitoring code, as a share of the rest of the watched steps."""
    shares = []
    for turn in turns:
        if turn["is_watched"]:
            own = turn[f"own_{measure}"]
            shares.append(own / (turn[measure] - own))
    mean = statistics.mean(shares)
    error = STANDARD_ERRORS * statistics.stdev(shares) / len(shares) ** 0.5
    return Share(mean, mean - error, mean + error)


def share_by_turns(turns: Sequence[Turn], measure: str) -> Share:
    """Return how much longer a step of a watched turn is than one of its neighbour: the median."""
    shares = []
    for pair in zip(turns[::2], turns[1::2], strict=True):
        plain, watched = sorted(pair, key=lambda turn: turn["is_watched"])
        shares.append(watched[measure] / plain[measure] - 1)
    shares.sort()
    rank = rank_of_interval(len(shares))
    return Share(statistics.median(shares), shares[rank], shares[-1 - rank])


def rank_of_interval(count: int) -> int:
    """Return how many values to leave out at each end, so that the rest spans their median.

    This is the sign test. Each value lies below the true median with probability 1/2, as a coin
    shows heads, so the number of values below it is binomially distributed.
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
    if options.json:
        print(json.dumps(to_json(turns)))
    else:
        print("\n".join(text_lines(turns)))
    return 0


def to_json(turns: Sequence[Turn]) -> dict[str, Mapping[str, float]]:
    """Return all shares as JSON values."""
    shares = {f"own_{measure}": own_share(turns, measure) for measure in MEASURES}
    shares["turns"] = share_by_turns(turns, "processor")
    return {name: asdict(share) for name, share in shares.items()}


def text_lines(turns: Sequence[Turn]) -> Iterator[str]:
    """Yield all shares as lines of text."""
    watched = [turn for turn in turns if turn["is_watched"]]
    for measure in MEASURES:
        own = 1000 * statistics.mean(turn[f"own_{measure}"] for turn in watched)
        whole = 1000 * statistics.mean(turn[measure] for turn in watched)
        yield f"{measure:9}  {own:.1f} of {whole:.0f} ms a step: {own_share(turns, measure)}"
    yield f"by turns   processor time of {len(watched)} pairs: {share_by_turns(turns, 'processor')}"


if __name__ == "__main__":
    sys.exit(main())
