"""Measure both bases of a 4-bit run: merge over each, check each, and say which is better.

    exports/both-<form>[-<quant>].json   what each answered, and the one that is recommended

Where the disk holds only one of the two, they are made one after the other, and the recommended one
is what stays.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from core.after_training.export import Export, ExportStatus, launch, list_exports
from core.after_training.export.forms import FORMS, BaseChoice
from core.after_training.export.plan import ExportPlan, plan_export
from core.after_training.export.records import exports_folder
from core.after_training.export_checks.checking import Never, check_export
from core.job import Problem, SpecError
from core.runs import Run
from core.runs.checks import Outcome, SuiteResult
from core.runs.checks.statistics import MAX_CHANCE, sign_test
from core.runs.files import read_json
from core.training.contract.checks.suite import Suite
from core.training.contract.files import write_json
from core.training.contract.methods import METHODS
from core.training.contract.stages import STAGES

BASES: tuple[BaseChoice, BaseChoice] = ("trained", "original")
MEASURED = ("merged", "gguf", "ollama")
"""Forms that can be measured."""
DISK = "disk"
"""Field of a problem with the room on the disk."""
OnStatus = Callable[[str, float], None]
"""Called with (what is done, its share from 0 to 1)."""


@dataclass(frozen=True)
class Numbers:
    """Settings of an export with numbers of another type, as plan_export takes them."""

    quant: str = ""
    llama_cpp: str = ""
    imatrix: str = ""


@dataclass(frozen=True)
class BothBases:
    """Results of one form of export over both bases."""

    form: str
    quant: str
    step: int
    """Optimizer steps of the result that was exported."""
    recommended: BaseChoice
    """Better one of those that are to be trusted, else of both."""
    untrusted: tuple[BaseChoice, ...]
    """Bases of the exports whose verification has failed."""
    names: Mapping[BaseChoice, str]
    """Base -> name of the export over it."""
    results: Mapping[BaseChoice, tuple[SuiteResult, ...]]
    """Base -> what the export over it answered, beside the model as trained."""

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self | None:
        """Return it from a file of a run; None if it is damaged."""
        try:
            results = {}
            for base in BASES:
                found = [SuiteResult.from_json(each) for each in fields["results"][base]]
                results[base] = tuple(each for each in found if each)
            form, quant = str(fields["form"]), str(fields["quant"])
            names = {base: str(fields["names"][base]) for base in BASES}
            recommended = BASES[BASES.index(fields["recommended"])]
            untrusted = _untrusted(fields, recommended)
            step = int(fields["step"])
            both = cls(form, quant, step, recommended, untrusted, names, results)
        except (KeyError, TypeError, ValueError):
            return None
        return both if both.compared else None

    @property
    def compared(self) -> tuple[SuiteResult, ...]:
        """Return the suites with the export over the base as trained as `before`, and the one over
        the 16-bit base as `after`."""
        others = {each.name: each for each in self.results["original"]}
        found = []
        for result in self.results["trained"]:
            other = others.get(result.name)
            if other and other.sha256 == result.sha256:
                found.append(_between(result, other))
        return tuple(found)

    @property
    def is_one_trusted(self) -> bool:
        return len(self.untrusted) < len(BASES)

    @property
    def p_value(self) -> float:
        """Chance of a difference at least this uneven over all suites, if there were none."""
        lost = sum(len(each.lost) for each in self.compared)
        return sign_test(lost, sum(len(each.gained) for each in self.compared))

    def to_file(self) -> dict[str, object]:
        """Return it as the folder of a run keeps it."""
        results = {base: [each.to_file() for each in self.results[base]] for base in BASES}
        return {
            "form": self.form,
            "quant": self.quant,
            "step": self.step,
            "recommended": self.recommended,
            "untrusted": list(self.untrusted),
            "names": dict(self.names),
            "results": results,
        }

    def to_json(self) -> dict[str, object]:
        """Return what `export --base both --json` prints of it."""
        suites = []
        for each in self.compared:
            counts = {"trained": each.before, "original": each.after}
            suites.append(
                {"name": each.name, "total": each.total, **counts, "p_value": each.p_value}
            )
        return {
            "recommended": self.recommended if self.is_one_trusted else None,
            "untrusted": list(self.untrusted),
            "names": dict(self.names),
            "suites": suites,
        }


def _untrusted(fields: Mapping[str, Any], recommended: BaseChoice) -> tuple[BaseChoice, ...]:
    """Return the bases in a file whose exports are not to be trusted. Raises KeyError, ValueError,
    TypeError."""
    if "untrusted" in fields:
        return tuple(BASES[BASES.index(each)] for each in fields["untrusted"])
    if fields["are_both_trusted"]:  # as earlier versions have written
        return ()
    return tuple(base for base in BASES if base != recommended)


def measured_both(run: Run) -> tuple[BothBases, ...]:
    """Return what was measured of the result that a run has now."""
    found = []
    for path in sorted(exports_folder(run).glob("both-*.json")):
        both = BothBases.from_json(read_json(path))
        if both and both.step == (run.result_step or run.step):
            found.append(both)
    return tuple(found)


def require_both(run: Run, form: str) -> None:
    """Raise SpecError unless a form of export can be measured over both bases."""
    if METHODS[run.job.method].base_bits != 4:
        problem = f"both has no use: {run.job.method} trains over one base only"
        raise SpecError(Problem("--base", problem, "leave it out"))
    if STAGES[run.job.stage].head == "score":
        problem = "both has no use: a reward model answers no suites to measure it by"
        raise SpecError(Problem("--base", problem, "choose trained or original"))
    if form not in MEASURED:
        problem = f"{form} cannot be measured over both bases"
        raise SpecError(Problem("--base", problem, f"choose {', '.join(MEASURED)} for --to"))


def measure_both(
    run: Run,
    form: str,
    suites: Sequence[Suite],
    on_status: OnStatus,
    *,
    numbers: Numbers = Numbers(),
    is_cancelled: Never | None = None,
) -> BothBases:
    """Export a run over both bases, check both, and keep what was measured.

    Raises SpecError, ChildError and OSError; an export that
    was stopped is a SpecError too.
    """
    require_both(run, form)
    measure = _Measurement(run, form, suites, on_status, is_cancelled, numbers)
    results: dict[BaseChoice, tuple[SuiteResult, ...]] = {}
    names: dict[BaseChoice, str] = {}
    untrusted: list[BaseChoice] = []
    for base in BASES:
        export = measure.make(base, tuple(names.values()))
        names[base] = export.name
        results[base] = measure.check(export)
        verified = export.verified
        if verified is not None and not verified.trusted:
            untrusted.append(base)
    quant = numbers.quant if FORMS[form].has_quant else ""
    step = run.result_step or run.step
    better = _better(results, untrusted)
    both = BothBases(form, quant, step, better, tuple(untrusted), names, results)
    left = {export.name for export in list_exports(run)}
    if names[both.recommended] not in left:  # it gave its room on the disk to the other
        export = measure.make(both.recommended, tuple(left & set(names.values())))
        measure.check(export)
    name = "-".join(filter(None, ("both", form, quant)))
    write_json(exports_folder(run) / f"{name}.json", both.to_file())
    return both


@dataclass(frozen=True)
class _Measurement:
    """Run whose result is exported and checked."""

    run: Run
    form: str
    suites: Sequence[Suite]
    on_status: OnStatus
    is_cancelled: Never | None
    numbers: Numbers

    def make(self, base: BaseChoice, others: Sequence[str]) -> Export:
        """Export over a base. The other exports are deleted if their room is needed."""
        try:
            plan = self._plan(base)
        except SpecError as error:
            is_room_needed = [each.field for each in error.problems] == [DISK]
            if not others or not is_room_needed:
                raise
            for name in others:
                launch.delete(self.run, name)
            plan = self._plan(base)
        name = launch.start(self.run, plan)
        status = launch.wait(self.run, name, lambda each: self._follow(name, each))
        if status.state == "finished":
            return launch.result_of(self.run, name)
        if status.state == "stopped":
            fix = "measure again: it continues with the files that are finished"
            raise SpecError(Problem("export", f"{name} was stopped", fix))
        reason = status.error.rstrip(".")
        raise SpecError(Problem("export", f"{name}: {reason}", status.fix or "see its log"))

    def check(self, export: Export) -> tuple[SuiteResult, ...]:
        """Return what an export answers to the suites."""
        text = f"Asking {export.name}"
        self.on_status(text, 0.0)
        report = check_export(
            self.run,
            export,
            self.suites,
            on_progress=lambda share: self.on_status(text, share),
            is_cancelled=self.is_cancelled,
        )
        return report.suites

    def _plan(self, base: BaseChoice) -> ExportPlan:
        return plan_export(self.run, self.form, base=base, **asdict(self.numbers))

    def _follow(self, name: str, status: ExportStatus) -> None:
        self.on_status(f"{name}: {status.phase or 'starting'}", status.share)
        if self.is_cancelled and self.is_cancelled():
            launch.request_stop(self.run, name)


def _better(
    results: Mapping[BaseChoice, tuple[SuiteResult, ...]], untrusted: Sequence[BaseChoice]
) -> BaseChoice:
    """Return the base that is recommended: as it trained, unless the other passes more tests by
    more than chance, or is alone to be trusted."""
    if len(untrusted) == 1:
        return "original" if untrusted[0] == "trained" else "trained"
    lost = gained = 0
    others = {each.name: each for each in results["original"]}
    for result in results["trained"]:
        between = _between(result, others[result.name])
        lost, gained = lost + len(between.lost), gained + len(between.gained)
    if gained > lost and sign_test(lost, gained) < MAX_CHANCE:
        return "original"
    return "trained"


def _between(trained: SuiteResult, original: SuiteResult) -> SuiteResult:
    """Return the answers of two exports to one suite as before and after."""
    outcomes = []
    for one, other in zip(trained.outcomes, original.outcomes, strict=True):
        outcomes.append(
            Outcome(
                prompt=one.prompt,
                category=one.category,
                expected=one.expected,
                before=one.after,
                after=other.after,
                passed_before=one.passed_after,
                passed_after=other.passed_after,
            )
        )
    return SuiteResult(trained.name, trained.sha256, trained.step, tuple(outcomes))
