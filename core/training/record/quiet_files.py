"""Run files of the ranks that write nothing: all but the first."""

from collections.abc import Mapping
from typing import Any

from .run_files import RunFiles


class QuietRunFiles(RunFiles):
    """Status, metrics and stop request as this rank knows them. Leaves the run folder as it is."""

    def append_metrics(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Write nothing: rank 0 writes the line."""

    def append_sample(self, step: int, prompt: str, answer: str) -> None:
        """Write nothing: rank 0 has the same answer."""
        self.marks.add()

    def sync(self) -> None:
        """Wait for nothing."""

    def close(self) -> None:
        """Delete nothing."""

    def _truncate_after(self, step: int, *, last_sample_step: int) -> list[dict[str, Any]]:
        rows = [row for row in self._metrics.rows() if row["step"] <= step]
        self._seconds_before = max((float(row["time"]) for row in rows), default=0.0)
        return rows

    def _write_status(self) -> None:
        pass

    def _write_spare_file(self) -> None:
        pass
