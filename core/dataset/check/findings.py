"""What a check has found so far: counts of everything, a bounded list of examples, the lines of the bad rows."""

from array import array
from collections import Counter

from core.dataset.report import RowProblem
from core.training.contract.messages import Fault
from core.training.contract.row_formats import TextFormat

LISTED_PROBLEMS = 100
LISTED_WARNINGS_OF_A_CODE = 20


class Findings:
    """Grows while a file is read; its size does not follow the file's, eight bytes for each bad row aside."""

    def __init__(self) -> None:
        self.problems: list[RowProblem] = []
        self.warnings: list[RowProblem] = []
        self.problem_counts: Counter[str] = Counter()
        self.warning_counts: Counter[str] = Counter()
        self.bad_lines = array("Q")
        self.rows = 0
        self.usual_format: TextFormat = ""
        """That of the first row that can be used."""
        self.first_lines: dict[TextFormat, int] = {}
        """Format -> the first line that is written so."""

    def add_fault(self, line: int, fault: Fault) -> None:
        """Something for which the row cannot be used."""
        if len(self.problems) < LISTED_PROBLEMS:
            self.problems.append(RowProblem(line, *fault))
        self.problem_counts[fault.code] += 1
        if fault.field != "file" and (not self.bad_lines or self.bad_lines[-1] != line):
            self.bad_lines.append(line)

    @property
    def num_bad_rows(self) -> int:
        return len(self.bad_lines)

    def add_warning(self, line: int, fault: Fault) -> None:
        """Something to know about a row."""
        if (
            self.warning_counts[fault.code] < LISTED_WARNINGS_OF_A_CODE
            and len(self.warnings) < LISTED_PROBLEMS
        ):
            self.warnings.append(RowProblem(line, *fault))
        self.warning_counts[fault.code] += 1
