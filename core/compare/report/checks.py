"""Results of checks of a run, checks/*.json, before and after training. Only reads."""

from dataclasses import dataclass
from pathlib import Path

from core.compare.report.folders import read_fields


@dataclass(frozen=True)
class CheckResult:
    """One suite of questions, before and after training."""

    name: str
    total: int
    before: int
    """Passed before training."""
    after: int
    """Passed after training."""


def read_checks(folder: Path) -> tuple[CheckResult, ...]:
    """Return the sound results of a run folder, by name."""
    found = (_result(path) for path in sorted((folder / "checks").glob("*.json")))
    return tuple(each for each in found if each)


def _result(path: Path) -> CheckResult | None:
    fields = read_fields(path)
    total, before, after = (fields.get(name) for name in ("total", "before", "after"))
    if not (isinstance(total, int) and isinstance(before, int) and isinstance(after, int)):
        return None
    if not (0 <= before <= total and 0 <= after <= total and total):
        return None
    return CheckResult(str(fields.get("name") or path.stem)[:100], total, before, after)
