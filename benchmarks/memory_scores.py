"""How far the estimate is off on trainings that measure_memory.py measured. Never runs any."""

import dataclasses
import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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
    """The errors of one group of rows, as shares of the measured value."""

    group: str
    metric: str
    n: int
    median: float
    p90: float
    worst: float
    bias: float

    @classmethod
    def of(cls, group: str, metric: str, errors: Iterable[float]) -> "Accuracy":
        """The accuracy that these signed errors come to."""
        signed = tuple(errors)
        sizes = sorted(map(abs, signed))
        p90 = sizes[int(0.9 * (len(sizes) - 1))]
        return cls(
            group,
            metric,
            len(sizes),
            statistics.median(sizes),
            p90,
            sizes[-1],
            statistics.mean(signed),
        )


def read_rows(path: Path) -> dict[str, Row]:
    """Point -> its last row in a file, if there is one; a line torn by a crash, or of another kind, is left out."""
    rows: dict[str, Row] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if "id" in row:
            rows[row["id"]] = row
    return rows


def predict(row: Row) -> MemoryEstimate:
    """What the estimate says today of the training in a row. Raises SpecError and UnknownArchitecture."""
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
    return estimate(
        JobSpec.parse(row["job"]),
        ModelShape.from_config(row["config"]),
        gpu,
        max(row["row_tokens"]),
    )


def errors(row: Row) -> dict[str, float]:
    """Metric -> how far the estimate is off, as a share of what was measured."""
    predicted = predict(row)
    return {
        metric: getattr(predicted, foretold) / row[measured] - 1
        for metric, (measured, foretold) in METRICS.items()
        if row.get(measured)
    }


def accuracies(rows: Iterable[Row]) -> list[Accuracy]:
    """How far the estimate is off, by method and metric, and by phase.

    The estimate is for the longest batch, with padding in it, so that equal and varied rows are groups of their own.
    """
    found: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if "error" in row:
            continue
        card, is_longest = row["gpu"]["name"], row["rows"] == "padded"
        group = f"{card} {row['job']['method']}" + ("" if is_longest else f", {row['rows']} rows")
        for metric, error in errors(row).items():
            found.setdefault((group, metric), []).append(error)
        for phase, predicted_bytes in predict(row).phases.items() if is_longest else ():
            if measured := row["phase_peak_bytes"].get(phase):
                found.setdefault((f"{card} {phase}", "allocated"), []).append(
                    predicted_bytes / measured - 1
                )
    return [Accuracy.of(group, metric, signed) for (group, metric), signed in sorted(found.items())]


def print_scores(rows: Iterable[Row], as_json: bool) -> None:
    """The accuracy of the estimate on rows."""
    scores = accuracies(rows)
    if as_json:
        print(json.dumps({"groups": [dataclasses.asdict(score) for score in scores]}, indent=2))
        return
    print(f"{'group':52}{'metric':11}{'n':>4}{'median':>9}{'p90':>9}{'worst':>9}{'bias':>9}")
    for score in scores:
        shares = "".join(
            f"{share:9.2%}" for share in (score.median, score.p90, score.worst, score.bias)
        )
        print(f"{score.group:52}{score.metric:11}{score.n:4}{shares}")
