"""Summary: every number of a report, as the folders of its runs hold them. Writes nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from statistics import fmean, stdev

import numpy as np

from core.after_training.compare import Comparison, Trial, checking, record
from core.after_training.compare.report.folders import read_fields
from core.runs import Home, Run
from core.runs.checks import CheckCount
from core.runs.past_runs import WARM_UP_STEPS, compared_peaks

NumberName = str
"""Name of a figure of a run, such as `eval_loss`."""


@dataclass(frozen=True)
class RunFigures:
    """Numbers of one run."""

    trial: Trial
    state: str
    """State of the run, or `left out`, `planned`, `deleted`."""
    run: Run | None = field(default=None, repr=False)
    reason: str = ""
    """Why it failed, or was left out."""
    place: int = 0
    """Number of its trial in the comparison, from 0."""

    @property
    def loss(self) -> float | None:
        """Last logged training loss."""
        if self.run:
            return self.run.loss
        return None

    @property
    def eval_loss(self) -> float | None:
        """Evaluation loss at the end."""
        return self._last("eval_loss")

    @property
    def eval_perplexity(self) -> float | None:
        """Perplexity of the evaluation rows at the end."""
        return self._last("eval_perplexity")

    @property
    def tokens_per_second(self) -> float | None:
        """Median of the logged rates, without the first steps."""
        curve = self.run.curves().get("tokens_per_second") if self.run else None
        if curve is None or len(curve.values) == 0:
            return None
        steady = curve.values[WARM_UP_STEPS:]
        return float(np.nanmedian(steady if len(steady) else curve.values))

    @property
    def seconds(self) -> float | None:
        """Training time."""
        if self.run and self.run.step:
            return self.run.seconds
        return None

    @property
    def usd(self) -> float | None:
        """Price of that time on its card."""
        if self.run and self.run.step:
            return self.run.usd
        return None

    @property
    def peak_bytes(self) -> int | None:
        """Measured peak."""
        if self.run:
            return self.run.peak_bytes
        return None

    @property
    def predicted_bytes(self) -> int | None:
        """Predicted memory of the process."""
        if self.run:
            return self.run.predicted_bytes
        return None

    @property
    def num_trainable_parameters(self) -> int | None:
        """Parameters that train, as the program counted them."""
        if self.run:
            return self.run.status.num_trainable_parameters
        return None

    @property
    def eval_rows(self) -> int | None:
        """Rows that were held out."""
        if self.run:
            return self.run.status.num_eval_rows
        return None

    @cached_property
    def phases(self) -> Mapping[str, tuple[int, int]]:
        """Phase -> (predicted, measured) peak, where both are known."""
        if self.run:
            return compared_peaks(self.run)
        return {}

    @cached_property
    def components(self) -> Mapping[str, int]:
        """Component -> predicted bytes."""
        parts = read_fields(self.run.folder / "estimate.json").get("components") if self.run else ()
        found: dict[str, int] = {}
        for part in parts if isinstance(parts, list) else ():
            if isinstance(part, dict) and isinstance(part.get("bytes"), int):
                found[str(part.get("name"))] = part["bytes"]
        return found

    @cached_property
    def checks(self) -> tuple[CheckCount, ...]:
        """Results of its checks, before and after training."""
        return self.run.checks if self.run else ()

    def _last(self, key: str) -> float | None:
        curve = self.run.curves().get(key) if self.run else None
        if curve is None or len(curve.values) == 0:
            return None
        value = float(curve.values[-1])
        if np.isnan(value):
            return None
        return value

    def to_json(self) -> dict[str, object]:
        """Return the run as `compare --json` lists it."""
        names = ("loss", "eval_loss", "eval_perplexity", "tokens_per_second", "seconds", "usd")
        more = ("peak_bytes", "predicted_bytes", "num_trainable_parameters")
        return {
            "id": self.trial.id,
            "method": self.trial.method,
            "seed": self.trial.seed,
            "state": self.state,
            "label": self.trial.point.label,
            "settings": dict(self.trial.settings),
            "reason": self.reason,
            "fix": self.trial.fix,
            **{name: getattr(self, name) for name in (*names, *more)},
            "phases": {name: list(pair) for name, pair in self.phases.items()},
            "checks": [asdict(each) for each in self.checks],
        }


@dataclass(frozen=True)
class Spread:
    """Mean of some runs, and how far they differ."""

    mean: float
    deviation: float | None
    """Standard deviation; None for one run."""
    number: int


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone."""

    label: str
    runs: tuple[RunFigures, ...]

    @property
    def finished(self) -> tuple[RunFigures, ...]:
        """Runs that came to their end."""
        return tuple(each for each in self.runs if each.state == "finished")

    @property
    def shown(self) -> RunFigures:
        """Run that stands for the group where one is enough: the first finished, else the first."""
        return (*self.finished, *self.runs)[0]

    def by_seed(self, name: NumberName) -> Mapping[int, float]:
        """Return seed -> a number of the finished runs that have it."""
        found = {each.trial.seed: getattr(each, name) for each in self.finished}
        return {seed: value for seed, value in found.items() if value is not None}

    def spread(self, name: NumberName) -> Spread | None:
        """Return the mean of a number over the finished runs, None if none of them has it."""
        values = list(self.by_seed(name).values())
        if not values:
            return None
        deviation = stdev(values) if len(values) > 1 else None
        return Spread(fmean(values), deviation, len(values))


@dataclass(frozen=True)
class Summary:
    """Everything that a report says."""

    title: str
    question: str
    command: str
    created: float
    """Unix seconds."""
    groups: tuple[Group, ...]
    note: str = ""
    """Why the comparison ended before all its runs."""
    unchecked: Mapping[str, str] = field(default_factory=dict)
    """Run by its name in the report -> why it could not be checked."""

    @property
    def runs(self) -> tuple[RunFigures, ...]:
        """All runs, group by group."""
        return tuple(run for group in self.groups for run in group.runs)

    @property
    def compared(self) -> tuple[Group, ...]:
        """Groups with a finished run."""
        return tuple(group for group in self.groups if group.finished)

    def values(self, name: NumberName) -> Mapping[str, Mapping[int, float]]:
        """Return label -> seed -> a number, of the groups that have it."""
        found = {group.label: group.by_seed(name) for group in self.groups}
        return {label: values for label, values in found.items() if values}

    @property
    def judged_by(self) -> NumberName:
        """Number whose lowest mean is the best: the evaluation loss, or the training loss."""
        return "eval_loss" if self.values("eval_loss") else "loss"

    @property
    def best(self) -> Group | None:
        """Group that is the best in the seeds that all have finished.

        Seeds hold out rows that are easy or hard: a group whose hard seed failed is not better. If
        no seed is common to all, those with the most seeds are compared.
        """
        values = self.values(self.judged_by)
        if not values:
            return None
        common = set.intersection(*(set(by_seed) for by_seed in values.values()))
        most = max(map(len, values.values()))
        means = {
            label: fmean(by_seed[seed] for seed in common or by_seed)
            for label, by_seed in values.items()
            if common or len(by_seed) == most
        }
        label = min(means, key=lambda label: means[label])
        return next(group for group in self.groups if group.label == label)


def summary_of(home: Home, comparison: Comparison) -> Summary:
    """Return the summary of a comparison as its runs are now."""
    runs = [_figures(home, place, trial) for place, trial in enumerate(comparison.trials)]
    return Summary(
        title=f"Comparison {comparison.id}",
        question=comparison.question,
        command=comparison.command,
        created=comparison.created,
        groups=_groups(runs),
        note=comparison.note,
        unchecked=_unchecked(home, comparison),
    )


def _unchecked(home: Home, comparison: Comparison) -> Mapping[str, str]:
    reasons = dict(comparison.checked)
    if not comparison.is_open:
        command = f"`python app.py compare --resume {comparison.id}` checks it"
        for run in checking.runs_to_check(home, comparison):
            reasons[run.id] = f"the comparison was stopped before; {command}"
    found = {}
    for trial in comparison.trials:
        if reason := reasons.get(trial.id):
            found[f"{trial.point.label}, seed {trial.seed}"] = reason
    return found


def summary_of_runs(runs: Sequence[Run]) -> Summary:
    """Return the summary of runs that were chosen by hand: those that differ in their seed alone
    are one group."""
    names: dict[str, str] = {}
    figures = []
    for run in runs:
        key = run.job.model_copy(update={"seed": 0}).to_json()
        settings: dict[str, object] = {}
        if run.job.method in names.values() and key not in names:
            settings = {"run": run.name}
        names.setdefault(key, run.job.method)
        trial = Trial(run.job.method, run.job.seed, settings, id=run.id)
        figures.append(RunFigures(trial, run.state, run, run.error))
    ids = " ".join(run.id for run in runs)
    command = f"python app.py runs compare {ids}"
    question = f"How do these {len(runs)} runs differ?"
    created = max((run.created for run in runs), default=0.0)
    return Summary("Comparison of runs", question, command, created, _groups(figures))


def _groups(runs: Sequence[RunFigures]) -> tuple[Group, ...]:
    labels = dict.fromkeys(each.trial.point.label for each in runs)
    return tuple(
        Group(label, tuple(each for each in runs if each.trial.point.label == label))
        for label in labels
    )


def _figures(home: Home, place: int, trial: Trial) -> RunFigures:
    run = record.run_of(home, trial)
    reason = trial.left_out
    if run is not None and run.state in ("failed", "interrupted"):
        reason = run.error
    return RunFigures(trial, record.state_of(home, trial), run, reason, place)
