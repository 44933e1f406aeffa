"""Answer an edit of the form: settle its values and resolve the job, once for all panels.

Draws nothing. FormState and Answer live in `gr.State`, on the server; a browser sends form values
only, which JobSpec checks.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from core.advise import PLANNED_FIELDS
from core.dataset import DatasetReport
from core.job import Problem, SpecError
from core.memory import MemoryEstimate
from core.resolve import ResolvedJob, RowsOf, resolve
from core.runs import Home
from core.runs.past_runs import past_runs, speeds
from core.speed import Speed, calibrated
from core.training.contract.methods import METHODS
from core.training.contract.stages import STAGES, unused_fields
from ui.form import FIRST_SHOWN, first_values, help_of
from ui.handlers.reports import report_of

Values = Mapping[str, object]
"""JobSpec field -> value, as a browser sends it or as an edit settled it."""
IDENTITY = ("model", "dataset", "dataset_sha256", "method", "stage", "gpu")
"""Fields that say what the job is. They have no default to go back to."""


@dataclass(frozen=True)
class FieldMark:
    """State of one control apart from its value."""

    problem: str = ""
    help: str = ""
    is_changed: bool = False
    """True if the value is not the one that the model, the method and the stage would bring."""
    is_used: bool = True
    """False if the method or the stage does not read the field."""


@dataclass(frozen=True)
class FormState:
    """Form as the last edit left it."""

    values: Values
    marks: Mapping[str, FieldMark] = field(default_factory=dict)
    planned: Values = field(default_factory=dict)
    """Fields that the profile chose, with their values."""
    overwritten: Values = field(default_factory=dict)
    """The same fields with the values that the browser had sent."""
    set_by_user: frozenset[str] = frozenset()
    """Fields that the profile may choose, but the user has set since the profile was chosen."""

    def without_plan_of(self, *names: str) -> "FormState":
        """Forget that these fields were planned or set by the user."""
        return replace(
            self,
            planned=_without(self.planned, names),
            overwritten=_without(self.overwritten, names),
            set_by_user=self.set_by_user - set(names),
        )

    def filled_with(self, values: Values, set_by_user: Collection[str] = ()) -> "FormState":
        """Return the state of a form that was filled as a whole: no field follows a default."""
        kept = PLANNED_FIELDS & set(set_by_user)
        return FormState({**self.values, **values}, self.marks, set_by_user=kept)


FIRST_STATE = FormState(
    values=FIRST_SHOWN,
    marks={name: FieldMark(help=help_of(name, value)) for name, value in FIRST_SHOWN.items()},
)
"""Form as the page is built, before the first edit."""


@dataclass(frozen=True)
class Answer:
    """Everything that is known of one form. Every panel renders from it."""

    values: Values
    report: DatasetReport | None = None
    """None if there is no such file."""
    resolved: ResolvedJob | None = None
    """None if the job cannot run; `error` then says why."""
    error: SpecError | None = None
    estimate: MemoryEstimate | None = None
    """Corrected by past runs; None for an architecture that can only be traced."""
    speed: Speed | None = None
    """Corrected by past runs; None if there is no forecast."""

    def require(self) -> ResolvedJob:
        """Return the job. Raises SpecError if it cannot run."""
        if self.resolved is None:
            raise self.error or SpecError(NOT_READ_YET)
        return self.resolved


NOT_READ_YET = Problem("form", "has not been read yet", "wait a moment")
NO_ANSWER = Answer(values={})
"""Answer before the first edit."""


def answer_edit(
    home: Home, rows_of: RowsOf, before: FormState, sent: Values, acknowledged: Values
) -> tuple[FormState, Answer]:
    """Return the form as an edit leaves it, and the answer to it.

    `sent` is the form in the browser. `acknowledged` is the form that the browser sent after it had
    received an earlier answer, {} if it has not yet.
    """
    values = {**sent, **_moved_defaults(before.values, sent)}
    set_by_user = _set_by_user(before, sent, acknowledged)
    report = report_of(values)
    is_own_file = report is not None and values["dataset"] != "demo"
    values["dataset_sha256"] = report.sha256 if report and is_own_file else ""
    answer = answer_values(home, rows_of, values, set_by_user, report)
    planned = before.planned
    if answer.resolved:
        planned = dict(answer.resolved.plan.change)
    state = FormState(
        values=answer.values,
        marks=_marks(answer, set_by_user),
        planned=planned,
        overwritten={name: sent[name] for name in planned},
        set_by_user=set_by_user if planned else frozenset(),
    )
    return state, answer


def answer_values(
    home: Home,
    rows_of: RowsOf,
    values: Values,
    set_by_user: frozenset[str] | None = None,
    report: DatasetReport | None = None,
) -> Answer:
    """Resolve the job of these values. By default the profile leaves all of them as they are."""
    try:
        resolved = resolve(values, set_by_user, rows_of, partial(past_runs, home))
        estimate = None
        if resolved.model.shape is not None:
            estimate = resolved.estimate()
    except SpecError as error:
        return Answer(values, report, error=error)
    speed = resolved.speed()
    if speed is not None:
        speed = calibrated(speed, speeds(home, resolved))
    job = resolved.job
    settled = {**values, "model": job.model, "optim": job.optim, **resolved.plan.change}
    return Answer(settled, report, resolved, estimate=estimate, speed=speed)


def _moved_defaults(before: Values, sent: Values) -> Values:
    """Return the fields that follow the model, method and stage, with their new defaults.

    Only a field that still has the old default follows.
    """
    old = _defaults_of(before)
    new = _defaults_of(sent)
    return {
        name: new[name]
        for name, value in sent.items()
        if name not in IDENTITY and value == old[name] and value != new[name]
    }


def _defaults_of(values: Values) -> Values:
    return first_values(values["model"], values["method"], values["stage"])


def _set_by_user(before: FormState, sent: Values, acknowledged: Values) -> frozenset[str]:
    """Return the fields that the profile may choose, but the user has set since choosing it."""
    if sent["profile"] == "custom":
        return _set_by_user_alone(before, sent)
    if sent["profile"] != before.values["profile"]:
        return frozenset()
    found = set(before.set_by_user)
    for name, planned in before.planned.items():
        # After a quick edit the browser may not have received the last plan. It then still sends
        # the value that the plan has replaced, which is no edit.
        is_late = sent[name] == before.overwritten[name] and acknowledged.get(name) != planned
        if sent[name] != planned and not is_late:
            found.add(name)
    return frozenset(found)


def _set_by_user_alone(before: FormState, sent: Values) -> frozenset[str]:
    """Return the optimizer, unless it is the default or was chosen for a divided model: without a
    profile, no other field is chosen."""
    chosen = before.planned if before.values["profile"] == "custom" else {}
    if sent["optim"] in (_defaults_of(sent)["optim"], chosen.get("optim")):
        return frozenset()
    return frozenset({"optim"})


def _marks(answer: Answer, set_by_user: frozenset[str]) -> Mapping[str, FieldMark]:
    values = answer.values
    defaults = _defaults_of(values)
    problems = {}
    if answer.error:
        problems = {each.field: f"{each.problem}; {each.fix}" for each in answer.error.problems}
    unused: frozenset[str] = frozenset()
    stage, method = str(values["stage"]), str(values["method"])
    if stage in STAGES and method in METHODS:
        unused = unused_fields(stage, method)
    # What the profile may choose is marked only if the user has set it instead.
    never_changed = {*IDENTITY}
    if answer.resolved:
        never_changed |= answer.resolved.plan.change.keys()
    if values["profile"] != "custom":
        never_changed |= PLANNED_FIELDS
    return {
        name: FieldMark(
            problem=problems.get(name, ""),
            help=help_of(name, value),
            is_changed=name in set_by_user
            or (name not in never_changed and value != defaults[name]),
            is_used=name not in unused,
        )
        for name, value in values.items()
    }


def _without(values: Values, names: tuple[str, ...]) -> Values:
    return {name: value for name, value in values.items() if name not in names}
