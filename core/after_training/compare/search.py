"""Search: ranges of settings, within which an optimizer tries one run after the other.

Knows what may be tried. What is tried next is decided in optimizer.py.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from core.after_training.compare.study import MAX_RUNS, FieldMap, Point, Study
from core.job import JobSpec, Problem, SpecError
from core.speed import RowStatistics
from core.training.contract.methods import METHODS
from core.training.contract.stages import STAGES

RANGE = re.compile(r"\s*([-+.\de]+?)\s*\.\.\s*([-+.\de]+)\s*", re.IGNORECASE)
LARGE_RATIO = 10
"""A range whose ends differ by this factor or more is searched by factors, not by differences."""
DIGITS = 3
"""Of a setting that is searched: more would tell apart what training cannot."""
MIN_RUNS = 2


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included."""

    low: float
    high: float
    is_whole: bool = False

    @property
    def is_log(self) -> bool:
        """True if it is searched by factors."""
        return self.low > 0 and self.high / self.low >= LARGE_RATIO

    @property
    def words(self) -> str:
        """Range as a sentence names it."""
        return f"{self.low:g} to {self.high:g}"

    def rounded(self, value: float) -> float:
        """Return a value with few digits, within the range."""
        if self.is_whole:
            return round(value)
        return min(self.high, max(self.low, float(f"{value:.{DIGITS}g}")))


Axis = Range | tuple[object, ...]
"""Range, or the values to choose from."""


@dataclass(frozen=True)
class Search:
    """One job, and the settings that an optimizer may choose. Build one with `Search.parse`."""

    fields: FieldMap
    """Fields that the user gave."""
    methods: tuple[str, ...]
    axes: Mapping[str, Axis]
    num_runs: int
    """Runs in all, those that do not fit or fail included."""
    rows: RowStatistics | None = None
    """Facts of the data, for estimates."""

    @classmethod
    def parse(
        cls,
        fields: FieldMap,
        methods: Sequence[str],
        axes: Mapping[str, Sequence[str]],
        num_runs: int,
    ) -> "Search":
        """Return a search with values of the right types. Raises SpecError."""
        if not MIN_RUNS <= num_runs <= MAX_RUNS:
            fix = f"give {MIN_RUNS} to {MAX_RUNS}"
            raise SpecError(Problem("optimize", f"{num_runs} runs are no search", fix))
        study = Study.parse(fields, methods)
        found = {name: _axis(study, name, values) for name, values in axes.items()}
        search = cls(study.fields, study.methods, found, num_runs)
        search.require_judgeable()
        if not search.space:
            fix = "name what may vary: --vary learning_rate=1e-5..1e-3"
            raise SpecError(Problem("optimize", "there is nothing to search", fix))
        return search

    @property
    def space(self) -> Mapping[str, Axis]:
        """Everything that is chosen for a run: `method` is included if there are several."""
        if len(self.methods) > 1:
            return {"method": self.methods, **self.axes}
        return self.axes

    @property
    def study(self) -> Study:
        """Job with its methods, without axes."""
        return Study(self.fields, self.methods)

    def values_of_field(self, name: str) -> tuple[object, ...]:
        """Return the values of a field that the runs may have, of a range its ends; () if it is
        left to the job."""
        axis = self.axes.get(name)
        if isinstance(axis, Range):
            return axis.low, axis.high
        return axis or self.study.values_of_field(name)

    @property
    def question(self) -> str:
        """One sentence."""
        parts = []
        for name, axis in self.space.items():
            said = axis.words if isinstance(axis, Range) else ", ".join(map(str, axis))
            parts.append(f"{name} ({said})")
        model, data = (self.fields.get(name, "demo") for name in ("model", "dataset"))
        return (
            f"Which {' and '.join(parts)} gives the lowest evaluation loss for {model} on {data} "
            f"({self.study.stage}), in {self.num_runs} runs?"
        )

    def point_of(self, values: FieldMap) -> Point:
        """Return the group of the run with these values of the space."""
        settings = {name: values[name] for name in self.axes}
        return Point(str(values.get("method", self.methods[0])), settings)

    def values_of(self, point: Point) -> FieldMap:
        """Return the values of the space at a point."""
        return {name: {"method": point.method, **point.settings}[name] for name in self.space}

    def require_judgeable(self) -> None:
        """Raise SpecError for a job whose runs have no evaluation loss to compare."""
        stage = self.study.stage
        if STAGES[stage].generates:
            fix = "give values with --axis, and read the report"
            problem = f"the evaluation loss of {stage} does not say how good a model is"
            raise SpecError(Problem("optimize", problem, fix))
        share, rows = self.fields.get("eval_fraction"), self.fields.get("eval_dataset")
        if share == 0 and not rows:
            fix = "set --eval-fraction 0.1, or give --eval-dataset"
            raise SpecError(Problem("optimize", "no rows are held out to judge the runs by", fix))

    def to_json(self) -> dict[str, object]:
        """Return what the record of a comparison holds."""
        axes = {
            name: asdict(axis) if isinstance(axis, Range) else list(axis)
            for name, axis in self.axes.items()
        }
        return {
            "fields": dict(self.fields),
            "methods": list(self.methods),
            "axes": axes,
            "num_runs": self.num_runs,
            "rows": asdict(self.rows) if self.rows else None,
        }

    def require_sound(self) -> None:
        """Raise ValueError for a search that was edited to what cannot be."""
        is_known = set(self.methods) <= set(METHODS) and set(self.axes) <= set(JobSpec.model_fields)
        if not (self.methods and self.space and is_known):
            raise ValueError


def _axis(study: Study, name: str, values: Sequence[str]) -> Axis:
    """Return the range, or the values, that a text names. Raises SpecError."""
    ends = RANGE.fullmatch(values[0]) if len(values) == 1 else None
    texts = list(ends.groups()) if ends else values
    typed = Study.parse(study.fields, study.methods, {name: texts}).axes[name]
    numbers = [each for each in typed if isinstance(each, int | float)]
    if ends is None:
        return typed
    if isinstance(typed[0], bool) or len(numbers) < len(typed):
        fix = f"write {name}=A,B,C"
        raise SpecError(Problem("axis", f"{name} is no number, so it has no range", fix))
    low, high = min(numbers), max(numbers)
    if low == high or numbers[0] != low:
        fix = f"write {name}=SMALLEST..LARGEST"
        raise SpecError(Problem("axis", f"{values[0]!r} is no range", fix))
    return Range(low, high, is_whole=isinstance(typed[0], int))
