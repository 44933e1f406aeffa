"""What a check found: one problem, and the report on a whole file. Holds results; finds nothing itself."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from core.job import Problem
from core.training.contract.row_formats import TextFormat


@dataclass(frozen=True)
class RowProblem:
    """One thing wrong, or noteworthy, with one line."""

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


@dataclass(frozen=True)
class DatasetReport:
    """What a file holds.

    `problems` lists the first hundred, `num_problems` counts all; a file with a problem is not trained on. Warnings
    are worth knowing and stop nothing: at most a hundred are listed, twenty of each code.
    """

    rows: int
    valid_rows: int
    dataset_type: str
    """As TRL names it; empty if the columns are not known."""
    format: TextFormat
    columns: tuple[str, ...]
    num_problems: int
    problems: tuple[RowProblem, ...]
    row_format: str = ""
    """Id in ROW_FORMATS."""
    evidence: str = ""
    """Reason for this format: `messages in all of the first 1,000 rows`."""
    num_warnings: int = 0
    warnings: tuple[RowProblem, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    """How often each code occurs, among problems and warnings."""
    notes: tuple[str, ...] = ()
    """Facts about the file as a whole."""
    duplicates: int = 0
    """Rows that repeat an earlier row, byte for byte."""
    leaked: int = 0
    """Rows of the evaluation file that are in this file too."""
    sha256: str = ""
    """Of the bytes; empty if the file was refused by its first bytes."""
    found_columns: tuple[str, ...] = ()
    """The columns of the first rows, under the file's own names."""
    suggestion: Mapping[str, str] = field(default_factory=dict)
    """Where no kind was recognised: column of ours -> column of the file, as `map_columns` takes it; or empty."""
    repairs: tuple[str, ...] = ()
    """Ids of the repairs in REPAIRS that would help."""

    @property
    def is_usable(self) -> bool:
        return self.num_problems == 0 and self.valid_rows > 0

    def summary(self) -> str:
        """One line for a person: `1,204 rows · messages · 2 problems · 3 warnings`."""
        kind = " + ".join(self.columns) or "unknown columns"
        problems = counted(self.num_problems, "problem") if self.num_problems else "no problems"
        warnings = (counted(self.num_warnings, "warning"),) if self.num_warnings else ()
        return " · ".join((counted(self.rows, "row"), kind, problems, *warnings))

    def to_json(self) -> dict[str, object]:
        """Return the report as `check --json` prints it."""
        fields = asdict(self)
        return {"kind" if name == "row_format" else name: fields[name] for name in fields}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "DatasetReport":
        """Return the report that `to_json` was called on."""
        others = {name: value for name, value in fields.items() if name != "kind"}
        lists = {
            name: tuple(RowProblem(**each) for each in fields[name])
            for name in ("problems", "warnings")
        }
        texts = {
            name: tuple(fields[name]) for name in ("columns", "notes", "repairs", "found_columns")
        }
        return cls(**{**others, **lists, **texts, "row_format": fields["kind"]})

    @classmethod
    def refused(cls, problem: RowProblem, repairs: tuple[str, ...] = ()) -> "DatasetReport":
        """The report on a file that was not read to its end, for one reason."""
        return cls(0, 0, "", "", (), 1, (problem,), counts={problem.code: 1}, repairs=repairs)


def file_problem(code: str, message: str, fix: str) -> RowProblem:
    """A problem of the file as a whole."""
    return RowProblem(1, "file", code, message, fix)


def counted(number: int, noun: str) -> str:
    """`1 row`, `1,204 rows`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"
