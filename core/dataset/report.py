"""Results of a check: one problem, and the report on a whole file. Finds nothing itself."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from core.job import JobSpec, Problem, SpecError
from core.training.contract.row_formats import ROW_FORMATS_BY_ID, TextFormat
from core.training.contract.row_reader import RIGHT_ANSWERS, leak_sentence
from core.training.contract.stages import STAGES

LISTED_LINES = 10
MAX_COLUMNS = 64
"""Most columns of a row that can be read."""
LINE_OF_FIELD = re.compile(r"line (\d+), (.+)", re.DOTALL)
NUMBER_IN_BRACKETS = re.compile(r"\[\d+\]")
LISTED_FIELDS = 10
TRAIN_FIELDS = ("dataset", "mix")
"""Fields of a job that name files to train on."""
CONSENT_FLAG = "--accept-unread"
ANSWERS_FIX = (
    f"write it in a column {', '.join(RIGHT_ANSWERS[:4])}, or choose another of reward_functions"
)
ALL_LEAKED = "every row is trained on too, so eval_loss would not say how new rows do"
ALL_LEAKED_FIX = "give other rows, or leave it empty to hold out a part of the training data"
ONE_KIND = "give files whose rows are of one type and format"
LEAKED = "leaked"
"""Code of a warning of a row that is evaluated on and trained on."""


@dataclass(frozen=True)
class RowProblem:
    """Something wrong with one line, or worth knowing about it."""

    line: int
    """1-based."""
    field: str
    code: str
    message: str
    fix: str

    def __str__(self) -> str:
        return str(self.for_user())

    def for_user(self) -> Problem:
        """Return the same in the shape of every other problem, the line as its field."""
        where = "file" if self.field == "file" else f"line {self.line}, {self.field}"
        return Problem(where, self.message, self.fix)

    @classmethod
    def from_problem(cls, problem: Problem, code: str) -> "RowProblem":
        """Return a problem whose field may name a line, as `for_user` writes it."""
        place = LINE_OF_FIELD.fullmatch(problem.field)
        line, field = (int(place[1]), place[2]) if place else (1, problem.field)
        return cls(line, field, code, problem.problem, problem.fix)


@dataclass(frozen=True)
class ProblemGroup:
    """Same problem of one row or of many."""

    first: RowProblem
    num_rows: int
    lines: tuple[int, ...]
    """Lines of the first of these rows."""

    def __str__(self) -> str:
        return str(self.for_user())

    def for_user(self) -> Problem:
        """Return it as one problem that names the first lines."""
        if self.num_rows == 1:
            return self.first.for_user()
        lines = named_lines(self.lines, self.num_rows)
        where = f"{counted(self.num_rows, 'row')} ({lines}), {without_numbers(self.first.field)}"
        return Problem(where, self.first.message, self.first.fix)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "ProblemGroup":
        """Return the group that `asdict` was called on."""
        return cls(RowProblem(**fields["first"]), fields["num_rows"], tuple(fields["lines"]))


@dataclass(frozen=True)
class NotRead:
    """Column, or key of a message, that holds something and is not read."""

    field: str
    """Name of a column, or a place inside one: `images`, `messages[].weight`."""
    num_rows: int
    """Rows that hold something there."""
    first_line: int
    """1-based line of the first of them."""
    changes_learning: bool
    """True if the model would learn something else were it read: a system text, images, a mask."""

    def __str__(self) -> str:
        where = f"{counted(self.num_rows, 'row')}, first on line {self.first_line:,}"
        return f"{self.field} ({where})"

    def to_json(self) -> dict[str, object]:
        """Return it as `check --json` prints it."""
        return {
            "field": self.field,
            "rows": self.num_rows,
            "line": self.first_line,
            "changes_learning": self.changes_learning,
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "NotRead":
        """Return what `to_json` was called on."""
        names = ("field", "rows", "line", "changes_learning")
        return cls(*(fields[name] for name in names))


@dataclass(frozen=True)
class DatasetReport:
    """Report on a dataset file.

    `problems` lists the first hundred and `num_problems` counts all; a file with a problem is not
    trained on. Warnings stop nothing: at most a hundred are listed, twenty of each code.
    """

    rows: int = 0
    valid_rows: int = 0
    dataset_type: str = ""
    """As TRL names it; empty if the columns are not known."""
    format: TextFormat = ""
    columns: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    """Further columns that are read, such as `system`."""
    num_problems: int = 0
    problems: tuple[RowProblem, ...] = ()
    row_format: str = ""
    """Id in ROW_FORMATS."""
    evidence: str = ""
    """Why the rows are read so: `messages in all of the first 1,000 rows`."""
    num_warnings: int = 0
    warnings: tuple[RowProblem, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    """Occurrences of each code, among problems and warnings."""
    notes: tuple[str, ...] = ()
    """Facts about the file as a whole."""
    duplicates: int = 0
    """Rows that repeat an earlier row, byte for byte."""
    leaked: int = 0
    """Rows of the evaluation file that say the same as one of this file."""
    eval_rows: int = 0
    """Rows of the evaluation file; 0 without one."""
    sha256: str = ""
    """Of the bytes; empty if the file was refused by its first bytes."""
    found_columns: tuple[str, ...] = ()
    """Columns of the first rows, under the file's own names."""
    suggestion: Mapping[str, str] = field(default_factory=dict)
    """Mapping as `map_columns` takes it, where no row format was recognised; or empty."""
    repairs: tuple[str, ...] = ()
    """Ids of the repairs in REPAIRS that would help."""
    problem_groups: tuple[ProblemGroup, ...] = ()
    """Every problem once, in the order of their first lines, with the number of its rows."""
    warning_groups: tuple[ProblemGroup, ...] = ()
    not_read: tuple[NotRead, ...] = ()
    """Columns and keys of messages that hold something and are not read."""
    right_answers: int = 0
    """Rows that hold the right answer to their prompt, for stages whose model answers."""
    unwanted: int = 0
    """Rows whose label, which the stage does not read, says that the answer is not wanted."""

    @property
    def is_usable(self) -> bool:
        return self.num_problems == 0 and self.valid_rows > 0

    @property
    def trained_format(self) -> TextFormat:
        """Return as what its rows are trained on: some texts always become messages."""
        row_format = ROW_FORMATS_BY_ID.get(self.row_format)
        if row_format and row_format.is_always_chat:
            return "conversational"
        return self.format

    @property
    def needs_consent(self) -> tuple[NotRead, ...]:
        """Columns and keys without which something else would be learnt than the file says."""
        return tuple(each for each in self.not_read if each.changes_learning)

    def refusals(
        self, job: JobSpec, field: str, name: str, consent: str = CONSENT_FLAG
    ) -> tuple[Problem, ...]:
        """Return why a job cannot start on this usable file, which is one of its fields.

        `consent` says how to train without what is not read: a flag, or a button of the page.
        """
        problems = []
        if self.needs_consent and not job.accept_unread:
            listed = ", ".join(str(each) for each in self.needs_consent[:LISTED_FIELDS])
            num_more = len(self.needs_consent) - LISTED_FIELDS
            if num_more > 0:
                listed += f" and {num_more:,} more"
            message = f"{name} holds what is not read but would change what is learnt: {listed}"
            fix = f"map it to a column that is read, remove it, or train without it: {consent}"
            problems.append(Problem(field, message, fix))
        needs_answers = "exact_match" in job.reward_functions.split(",") and field in TRAIN_FIELDS
        if STAGES[job.stage].generates and needs_answers and self.right_answers < self.rows:
            lacking = counted(self.rows - self.right_answers, "row")
            message = f"{lacking} of {name} hold no right answer, which exact_match compares with"
            problems.append(Problem(field, message, ANSWERS_FIX))
        if 0 < self.leaked == self.eval_rows:
            problems.append(Problem("eval_dataset", ALL_LEAKED, ALL_LEAKED_FIX))
        return tuple(problems)

    @property
    def leak_warning(self) -> str:
        """Sentence about evaluation rows that are trained on, with their lines; "" if none are."""
        lines = [each.line for each in self.warnings if each.code == LEAKED]
        return leak_sentence(self.leaked, self.eval_rows, named_lines(lines, self.leaked))

    def summary(self) -> str:
        """Return one line: `1,204 rows · messages · 2 problems · 3 warnings`."""
        columns = " + ".join(self.columns) or "unknown columns"
        if self.beside:
            columns += f" with {', '.join(self.beside)}"
        problems = counted(self.num_problems, "problem") if self.num_problems else "no problems"
        parts = [counted(self.rows, "row"), columns, problems]
        if self.num_warnings:
            parts.append(counted(self.num_warnings, "warning"))
        return " · ".join(parts)

    def to_json(self) -> dict[str, object]:
        """Return the report as `check --json` prints it."""
        fields = asdict(self)
        fields["not_read"] = [each.to_json() for each in self.not_read]
        return {"kind" if name == "row_format" else name: fields[name] for name in fields}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "DatasetReport":
        """Return the report that `to_json` was called on."""
        found = {name: value for name, value in fields.items() if name != "kind"}
        for name in ("problems", "warnings"):
            found[name] = tuple(RowProblem(**each) for each in fields[name])
        for name in ("problem_groups", "warning_groups"):
            found[name] = tuple(map(ProblemGroup.from_json, fields[name]))
        found["not_read"] = tuple(map(NotRead.from_json, fields["not_read"]))
        for name in ("columns", "beside", "notes", "repairs", "found_columns"):
            found[name] = tuple(fields[name])
        return cls(**found, row_format=fields["kind"])

    @classmethod
    def refused(cls, problem: RowProblem, repairs: tuple[str, ...] = ()) -> "DatasetReport":
        """Return the report on a file that was not read to its end, for one reason."""
        counts = {problem.code: 1}
        return cls(
            num_problems=1,
            problems=(problem,),
            problem_groups=(ProblemGroup(problem, 1, (problem.line,)),),
            counts=counts,
            repairs=repairs,
        )


def require_one_kind(reports: Sequence[tuple[str, str, DatasetReport]]) -> None:
    """Raise SpecError if files, each with its job field and name, hold rows of differing kinds."""
    for job_field, name, report in reports[1:]:
        _first_field, first_name, first = reports[0]
        kind, first_kind = (
            f"{each.dataset_type} rows ({each.trained_format})" for each in (report, first)
        )
        if kind != first_kind:
            problem = f"{first_name} holds {first_kind} but {name} holds {kind}"
            raise SpecError(Problem(job_field, problem, ONE_KIND))


def file_problem(code: str, message: str, fix: str) -> RowProblem:
    """Return a problem of the file as a whole."""
    return RowProblem(1, "file", code, message, fix)


def without_numbers(text: str) -> str:
    """Return a place in a row without its indices: `messages[].role`."""
    return NUMBER_IN_BRACKETS.sub("[]", text)


def named_lines(lines: Sequence[int], number: int) -> str:
    """Return the first of a number of lines by name: `line 3`, `lines 1, 2 and 12 more`."""
    shown = ", ".join(f"{line:,}" for line in lines[:LISTED_LINES])
    rest = number - min(len(lines), LISTED_LINES)
    if rest:
        shown += f" and {rest:,} more"
    return f"line{'s' * (number != 1)} {shown}"


def counted(number: int, noun: str) -> str:
    """Return `1 row`, `1,204 rows`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"
