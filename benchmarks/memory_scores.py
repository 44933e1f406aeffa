"""Score the estimate on trainings that measure_memory.py measured. Never trains."""

import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from core.job import JobSpec
from core.memory import MemoryEstimate, estimate
from core.models import Gpu, ModelShape

Row = dict[str, Any]

METRICS: Mapping[str, tuple[str, str]] = {
    "allocated": ("peak_allocated_bytes", "peak_allocated_bytes"),
    "reserved": ("peak_reserved_bytes", "peak_reserved_bytes"),
    "total": ("nvml_used_bytes", "total_bytes"),
}
"""Metric -> field of a row, field of the estimate."""


@dataclass(frozen=True)
class Accuracy:
    """Errors of one group of rows, as shares of the measured value."""

    group: str
    metric: str
    n: int
    median: float
    p90: float
    worst: float
    bias: float

    @classmethod
    def of(cls, group: str, metric: str, errors: Iterable[float]) -> "Accuracy":
        """Summarize signed errors."""
        signed = tuple(errors)
        sizes = sorted(map(abs, signed))
        return cls(
            group,
            metric,
            n=len(sizes),
            median=statistics.median(sizes),
            p90=sizes[int(0.9 * (len(sizes) - 1))],
            worst=sizes[-1],
            bias=statistics.mean(signed),
        )


def read_rows(path: Path) -> dict[str, Row]:
    """Return the last row of each point in a file, {} without a file.

    Lines that a crash cut off, or of another kind, are skipped.
    """
    rows: dict[str, Row] = {}
    if not path.exists():
        return rows
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if "id" in row:
            rows[row["id"]] = row
    return rows


def predict(row: Row) -> MemoryEstimate:
    """Return today's estimate of the training in a row. Raises SpecError, UnknownArchitecture."""
    card = row["gpu"]
    gpu = Gpu(
        id="measured",
        name=card["name"],
        capacity_bytes=card["capacity_bytes"],
        compute_capability=tuple(card["compute_capability"]),
        supports_bf16=card["supports_bf16"],
        memory_bandwidth_bytes_per_second=0,
        flops=0,
        usd_per_hour=None,
        sources=(),
    )
    job, shape = JobSpec.parse(row["job"]), ModelShape.from_config(row["config"])
    return estimate(job, shape, gpu, max(row["row_tokens"]))


def errors(row: Row) -> dict[str, float]:
    """Return the error of the estimate by metric, as a share of the measured value."""
    estimated = predict(row)
    found = {}
    for metric, (measured, predicted) in METRICS.items():
        if row.get(measured):
            found[metric] = getattr(estimated, predicted) / row[measured] - 1
    return found


def accuracies(rows: Iterable[Row]) -> list[Accuracy]:
    """Return the accuracy of the estimate by method and metric, and by phase.

    The estimate is for the longest batch, with padding in it, so that equal and varied rows are
    groups apart.
    """
    found: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if "error" in row:
            continue
        card = row["gpu"]["name"]
        group = f"{card} {row['job']['method']}"
        if row["rows"] != "padded":
            group += f", {row['rows']} rows"
        for metric, error in errors(row).items():
            found.setdefault((group, metric), []).append(error)
        if row["rows"] != "padded":
            continue
        for phase, predicted_bytes in predict(row).phases.items():
            measured = row["phase_peak_bytes"].get(phase)
            if measured:
                error = predicted_bytes / measured - 1
                found.setdefault((f"{card} {phase}", "allocated"), []).append(error)
    return [Accuracy.of(group, metric, signed) for (group, metric), signed in sorted(found.items())]


def print_scores(rows: Iterable[Row], as_json: bool) -> None:
    """Print the accuracy of the estimate on rows."""
    scores = accuracies(rows)
    if as_json:
        print(json.dumps({"groups": [asdict(score) for score in scores]}, indent=2))
        return
    print(f"{'group':52}{'metric':11}{'n':>4}{'median':>9}{'p90':>9}{'worst':>9}{'bias':>9}")
    for score in scores:
        shares = "".join(
            f"{share:9.2%}" for share in (score.median, score.p90, score.worst, score.bias)
        )
        print(f"{score.group:52}{score.metric:11}{score.n:4}{shares}")
