"""Findings of a check so far: counts of everything, some examples, the lines of the bad rows."""

from array import array
from collections import Counter

from core.dataset.report import RowProblem
from core.training.contract.messages import Fault
from core.training.contract.row_formats import TextFormat

LISTED_PROBLEMS = 100
LISTED_WARNINGS_OF_A_CODE = 20


class Findings:
    """Findings while a file is read: a bounded size, and eight bytes for each bad row."""

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

    @property
    def text_format(self) -> TextFormat:
        """Format of the file: conversational if any row is."""
        if "conversational" in self.first_lines:
            return "conversational"
        return self.usual_format

    def add_fault(self, line: int, fault: Fault) -> None:
        """Note something for which the row cannot be used."""
        if len(self.problems) < LISTED_PROBLEMS:
            self.problems.append(RowProblem(line, *fault))
        self.problem_counts[fault.code] += 1
        is_new_line = not self.bad_lines or self.bad_lines[-1] != line
        if fault.field != "file" and is_new_line:
            self.bad_lines.append(line)

    def add_warning(self, line: int, fault: Fault) -> None:
        """Note something that is worth knowing and stops nothing."""
        num_listed = self.warning_counts[fault.code]
        if num_listed < LISTED_WARNINGS_OF_A_CODE and len(self.warnings) < LISTED_PROBLEMS:
            self.warnings.append(RowProblem(line, *fault))
        self.warning_counts[fault.code] += 1
