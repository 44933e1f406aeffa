"""Study: one job, and what varies between its runs: methods, settings, seeds. Runs nothing."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import product
from math import prod

from core.job import JobSpec, Problem, SpecError
from core.resolve import default_fields
from core.training.contract.methods import METHODS
from core.training.contract.stages import DEFAULT_STAGE, STAGES, defaults_of, unused_fields

FieldMap = Mapping[str, object]
"""JobSpec field -> value."""
FIXED: Mapping[str, str] = {
    "seed": "say how many seeds instead, as with --seeds",
    "method": "name the methods apart, as with --methods",
    "device": "the queue gives each run its device",
    "stage": "compare the stages one by one: each has data of its own",
}
"""Fields that are no axis -> what to do instead."""
MAX_RUNS = 500
MAX_NAMED = 10**9
"""A larger number of runs is not written out."""


@dataclass(frozen=True)
class Budget:
    """Limits on the runs of a comparison, held against the forecast. None is no limit."""

    max_runs: int | None = None
    max_hours: float | None = None
    max_usd: float | None = None


@dataclass(frozen=True)
class Point:
    """Method and settings of one group of runs, which differ in their seed alone."""

    method: str
    settings: FieldMap = field(default_factory=dict)
    """Values of the axes."""

    @property
    def label(self) -> str:
        """Name in tables and plots."""
        parts = [METHODS[self.method].title]
        parts += [f"{name} {value}" for name, value in self.settings.items()]
        return ", ".join(parts)


@dataclass(frozen=True)
class Study:
    """Job and what varies between its runs. Build one with `Study.parse`."""

    fields: FieldMap
    """Fields that the user gave, and those of the demo."""
    methods: tuple[str, ...]
    axes: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    num_seeds: int = 1
    budget: Budget = field(default_factory=Budget)

    @classmethod
    def parse(
        cls,
        fields: FieldMap,
        methods: Sequence[str] = (),
        axes: Mapping[str, Sequence[str]] | None = None,
        num_seeds: int = 1,
        budget: Budget | None = None,
    ) -> "Study":
        """Return the question with values of the right types. Raises SpecError.

        Without methods it is about the method of the job alone.
        """
        job = _typed_job(fields)
        typed = {name: getattr(job, name) for name in fields}
        chosen = tuple(dict.fromkeys(methods)) or (job.method,)
        given = axes or {}
        problems = [*_unknown_methods(chosen), *_bad_axes(given)]
        if num_seeds < 1:
            problems.append(Problem("seeds", f"{num_seeds} is too small", "give 1 or more"))
        if problems:
            raise SpecError(*problems)
        _require_few(sum(map(len, given.values())))
        values = {name: _typed_values(name, given[name]) for name in given}
        study = cls(typed, chosen, values, num_seeds, budget or Budget())
        unused = [unused_fields(study.stage, method) for method in chosen]
        if in_vain := set.intersection(*map(set, unused)) & set(values):
            names = f"{', '.join(sorted(in_vain))}: {study.stage} by {', '.join(chosen)}"
            raise SpecError(Problem("axis", f"{names} does not read this", "vary another setting"))
        _require_few(num_seeds * study.num_points)
        return study

    @property
    def question(self) -> str:
        """One sentence."""
        parts = []
        if len(self.methods) > 1:
            parts.append(f"the methods {', '.join(self.methods)}")
        for name, values in self.axes.items():
            parts.append(f"{name} {', '.join(map(str, values))}")
        what = " and ".join(parts) or f"runs by {self.methods[0]}"
        model, data = self.fields.get("model", "demo"), self.fields.get("dataset", "demo")
        seeds = f", with {self.num_seeds} seeds each" if self.num_seeds > 1 else ""
        return f"How do {what} compare for {model} on {data} ({self.stage}){seeds}?"

    @property
    def stage(self) -> str:
        """Stage of all runs."""
        return str(self.fields.get("stage", DEFAULT_STAGE))

    @property
    def method(self) -> str:
        """Method that the given fields are meant for."""
        return str(self.fields.get("method", JobSpec.model_fields["method"].default))

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of each group of runs: that of the job, and those after it."""
        first = self.fields.get("seed", JobSpec.model_fields["seed"].default)
        assert isinstance(first, int)
        return tuple(range(first, first + self.num_seeds))

    def values_of_field(self, name: str) -> tuple[object, ...]:
        """Return the values of a field that the runs may have, () if it is left to the job."""
        if name in self.axes:
            return self.axes[name]
        return (self.fields[name],) if name in self.fields else ()

    @property
    def num_points(self) -> int:
        """Number of groups of runs, counted without going through them: there may be billions."""
        return sum(prod(map(len, self._read_by(method).values())) for method in self.methods)

    def points(self) -> Iterator[Point]:
        """Yield every method with every combination of the axes that it reads."""
        for method in self.methods:
            axes = self._read_by(method)
            for values in product(*axes.values()):
                yield Point(method, dict(zip(axes, values, strict=True)))

    def _read_by(self, method: str) -> Mapping[str, tuple[object, ...]]:
        """Return the axes that a method reads."""
        unused = unused_fields(self.stage, method)
        return {name: self.axes[name] for name in self.axes if name not in unused}

    def fields_of(self, point: Point) -> FieldMap:
        """Return the job fields of a point.

        Values that are the defaults of the job's own method follow the other method. A learning
        rate that the user chose for one method is scaled by the ratio of the defaults: weights
        that train as they are take a tenth of what an adapter takes.
        """
        model = self.fields.get("model")
        own = default_fields(model, self.method, self.stage)
        fields = {
            name: value
            for name, value in self.fields.items()
            if name in ("model", "dataset", "stage", "gpu") or value != own[name]
        }
        if model == "demo":
            usual = default_fields(model, point.method, self.stage)
            fields = {**usual, **fields}
        fields["learning_rate"] = self._learning_rate(point.method)
        return {**fields, **point.settings, "method": point.method}

    def _learning_rate(self, method: str) -> float:
        usual, own_usual = (_usual_rate(self.stage, each) for each in (method, self.method))
        given = self.fields.get("learning_rate", own_usual)
        assert isinstance(given, int | float)
        return float(f"{given * usual / own_usual:.6g}")


def axes_of(lines: Sequence[str]) -> Mapping[str, Sequence[str]]:
    """Return the settings that vary, of lines such as `learning_rate=1e-4,2e-4`.

    Raises SpecError for one that cannot be read or is given twice.
    """
    axes: dict[str, list[str]] = {}
    for line in lines:
        name, equals, values = line.partition("=")
        if not equals:
            fix = "write it like learning_rate=1e-4,2e-4"
            raise SpecError(Problem("axis", f"{line!r} has no values", fix))
        name = name.strip().lstrip("-").replace("-", "_")
        if name in axes:
            fix = f"give all its values at once: {name}=A,B"
            raise SpecError(Problem("axis", f"{name} is given twice", fix))
        axes[name] = names_in(values)
    return axes


def names_in(text: str) -> list[str]:
    """Return the parts of a text between commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def require_one_card(axes: Iterable[str]) -> None:
    """Raise SpecError for runs on cards that this machine may not have."""
    if "gpu" in axes:
        problem = "gpu is an axis of estimates only: every run trains on the card that is here"
        fix = "leave out gpu; `compare --estimate-only` shows other cards"
        raise SpecError(Problem("axis", problem, fix))


def _require_few(num_runs: int) -> None:
    """Raise SpecError for more runs, or more values, than one comparison may have."""
    if num_runs > MAX_RUNS:
        said = f"{num_runs:,}" if num_runs < MAX_NAMED else f"more than {MAX_NAMED:,}"
        fix = f"give fewer values, at most {MAX_RUNS} runs"
        raise SpecError(Problem("axis", f"these are {said} runs", fix))


def _usual_rate(stage: str, method: str) -> float:
    usual = defaults_of(stage, method).get("learning_rate")
    return float(str(usual or JobSpec.model_fields["learning_rate"].default))


def _unknown_methods(methods: Sequence[str]) -> Iterator[Problem]:
    for method in methods:
        if method not in METHODS:
            yield Problem("methods", f"{method!r} is not one of {', '.join(METHODS)}", "choose")


def _bad_axes(axes: Mapping[str, Sequence[str]]) -> Iterator[Problem]:
    for name, values in axes.items():
        if name in FIXED:
            yield Problem("axis", f"{name} is no axis", FIXED[name])
        elif name not in JobSpec.model_fields:
            near = get_close_matches(name, JobSpec.model_fields, n=1, cutoff=0.6)
            fix = f"did you mean {near[0]}?" if near else "give a job field: train --help has them"
            yield Problem("axis", f"{name!r} is not a setting", fix)
        elif len(values) == 1 and re.fullmatch(r"[-+.\de]+\.\.[-+.\de]+", values[0], re.IGNORECASE):
            fix = "write FIELD=A,B,C for a grid, or let Optuna search it, as with --optimize 20"
            yield Problem("axis", f"{name}={values[0]} is a range", fix)
        elif not values:
            yield Problem("axis", f"{name} has no values", f"write {name}=VALUE,VALUE")


def _typed_values(name: str, values: Sequence[str]) -> tuple[object, ...]:
    """Return the values of an axis as the job reads them, each once. Raises SpecError."""
    return tuple(dict.fromkeys(getattr(_typed_job({name: value}), name) for value in values))


def _typed_job(fields: FieldMap) -> JobSpec:
    """Return a job whose fields have their types, but may not go together: a method may refuse
    what another one takes. Raises SpecError."""
    try:
        job = JobSpec.model_validate(dict(fields))
    except ValueError:
        return JobSpec.parse(fields)  # says what is wrong
    if job.stage not in STAGES or job.method not in METHODS:
        return JobSpec.parse(fields)
    return job
