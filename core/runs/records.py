"""Predictions, samples, notes and results of checks of a run, as its files hold them.

Damaged parts are left out.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from core.runs.checks import CheckCount
from core.runs.files import read_json
from core.runs.suites import usual_in
from core.speed import RowStatistics
from core.training.contract.typed_json import WrongType, types_of, value_as


@dataclass(frozen=True)
class Annotations:
    """Title, notes and tags that a user gave a run."""

    title: str = ""
    """Shown instead of the id."""
    notes: str = ""
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class BestStep:
    """Best evaluation of a run."""

    step: int
    metric: str
    """What was best: eval_loss, eval_reward, or the share of a suite that passes, in percent."""
    value: float


@dataclass(frozen=True)
class Prediction:
    """Prediction of memory and speed of a run. None for what is not known."""

    total_bytes: int | None = None
    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    phases: Mapping[str, int] = field(default_factory=dict)
    """Memory phase -> peak in bytes."""
    peak_tokens_per_second: float | None = None
    """Rate at which the GPU would compute only the model's own arithmetic."""
    tokens_per_second: float | None = None
    uncalibrated_reserved_bytes: int | None = None
    """Reserved peak before past runs corrected it."""
    includes_libraries: bool = False
    """True if the total holds what the process takes beside its tensors."""
    rows: RowStatistics | None = None
    """Lengths of the rows that it was computed for."""

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Return the sound parts of `estimate --json`, as any version wrote it."""
        speed = fields.get("speed")
        flat = {**fields, **speed} if isinstance(speed, dict) else fields
        parts = fields.get("components")
        names = [part.get("name") for part in parts if isinstance(part, dict)] if parts else []
        flat = {**flat, "includes_libraries": "cuda_context" in names}
        rows = flat.pop("rows", None)
        return cls(**_sound_fields(cls, flat), rows=_sound_rows(rows))

    def total_with(self, baseline_bytes: int | None) -> int | None:
        """Return the memory of the process, which takes some before its tensors; None if there is
        no prediction."""
        if self.total_bytes is None or self.includes_libraries:
            return self.total_bytes
        return self.total_bytes + (baseline_bytes or 0)


@dataclass(frozen=True)
class Sample:
    """Answer to a prompt at one step of a training."""

    step: int
    prompt: str
    answer: str

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self | None:
        """Return one row of samples.jsonl, None if a part of it is missing or damaged."""
        sound = _sound_fields(cls, fields)
        if sound.keys() == types_of(cls).keys():
            return cls(**sound)
        return None


def read_check_counts(folder: Path) -> tuple[CheckCount, ...]:
    """Return the results of checks in the folder of a run, those of the usual suites first."""
    found: dict[str, CheckCount] = {}
    for path in sorted((folder / "checks").glob("*.json")):
        with suppress(OSError):
            stat = path.stat()
            count = _check_count(path, stat.st_mtime_ns, stat.st_size)
            if count:
                found[count.name] = count
    usual = usual_in(tuple(found))
    return tuple(found[name] for name in (*usual, *(name for name in found if name not in usual)))


@lru_cache(maxsize=10_000)
def _check_count(path: Path, _changed_ns: int, _num_bytes: int) -> CheckCount | None:
    """Return the numbers of one result. Its file has every answer, so it is read once."""
    return CheckCount.from_json(read_json(path))


def _sound_rows(fields: object) -> RowStatistics | None:
    """Return the lengths of rows in a prediction, None if they are missing or damaged."""
    if not isinstance(fields, dict):
        return None
    sound = _sound_fields(RowStatistics, fields)
    return RowStatistics(**sound) if "num_rows" in sound else None


def _sound_fields(cls: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a record that are there and of the declared type."""
    sound = {}
    for name, declared in types_of(cls).items():
        if fields.get(name) is not None:
            with suppress(WrongType):
                sound[name] = value_as(declared, fields[name])
    return sound
