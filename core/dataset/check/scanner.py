"""Scan a file once: parse each line, validate its row, and note what is found. Opens no file."""

from array import array
from collections import Counter
from collections.abc import Mapping

from core.dataset.check.duplicates import Fingerprints
from core.dataset.check.groups import Groups
from core.dataset.check.special_tokens import (
    find_nul,
    find_special_token,
    may_hold_special_token,
)
from core.dataset.reading.json_elements import NOT_AN_ARRAY
from core.dataset.reading.layout import RowBlocks
from core.dataset.reading.lines import LineBlock, parse_block
from core.dataset.report import RowProblem
from core.training.contract.messages import Fault
from core.training.contract.row_columns import Row
from core.training.contract.row_formats import (
    RowFormat,
    TextFormat,
    find_row_format,
    format_fault,
    row_faults,
    text_format,
)
from core.training.contract.row_reader import unused_tools_fault

MAX_COLUMNS = 64
COLUMN_SETS_REMEMBERED = 1000
LONGEST_REMEMBERED = 2000
"""Characters of a row's column names: what is remembered of a file stays small."""
LISTED_PROBLEMS = 100
LISTED_WARNINGS_OF_A_CODE = 20
UNKNOWN = Fault("", "", "", "")
NO_ROWS = Fault("file", "no_rows", "there are no rows", "give one JSON object on each line")
FORMAT_WORDS: Mapping[TextFormat, str] = {"standard": "text", "conversational": "messages"}


class Findings:
    """Findings while a file is read: a bounded size, and eight bytes for each bad row."""

    def __init__(self) -> None:
        self.rows = 0
        self.problems: list[RowProblem] = []
        self.warnings: list[RowProblem] = []
        self.problem_counts: Counter[str] = Counter()
        self.warning_counts: Counter[str] = Counter()
        self.problem_groups = Groups()
        self.warning_groups = Groups()
        self.bad_lines = array("Q")
        self.usual_format: TextFormat = ""
        """That of the first row that can be used."""
        self.first_lines: dict[TextFormat, int] = {}
        """Format -> the first line that is written so."""

    @property
    def has_messages(self) -> bool:
        return "conversational" in self.first_lines

    def add_fault(self, line: int, fault: Fault) -> None:
        """Note something for which the row cannot be used."""
        if len(self.problems) < LISTED_PROBLEMS:
            self.problems.append(RowProblem(line, *fault))
        self.problem_counts[fault.code] += 1
        self.problem_groups.add(line, fault)
        is_new_line = not self.bad_lines or self.bad_lines[-1] != line
        if fault.field != "file" and is_new_line:
            self.bad_lines.append(line)

    def add_warning(self, line: int, fault: Fault) -> None:
        """Note something that is worth knowing and stops nothing."""
        num_listed = self.warning_counts[fault.code]
        if num_listed < LISTED_WARNINGS_OF_A_CODE and len(self.warnings) < LISTED_PROBLEMS:
            self.warnings.append(RowProblem(line, *fault))
        self.warning_counts[fault.code] += 1
        self.warning_groups.add(line, fault)


class Scanner:
    """Scanner of one file: takes it block by block and collects findings."""

    def __init__(
        self, stage: str, row_format: RowFormat | None, suggestion: Mapping[str, str]
    ) -> None:
        self.stage, self.row_format, self.suggestion = stage, row_format, suggestion
        self.findings = Findings()
        self.fingerprints = Fingerprints()
        self.num_blank = 0
        self.num_crlf = 0
        self._column_faults: dict[tuple[str, ...], Fault | None] = {}

    def scan_all(self, blocks: RowBlocks) -> None:
        """Check all rows of a file."""
        for block in blocks:
            self.scan(block)
        if not blocks.is_whole:
            self.findings.add_fault(1, NOT_AN_ARRAY)
        if self.findings.rows == 0:
            self.findings.add_fault(1, NO_ROWS)

    def scan(self, block: LineBlock) -> None:
        """Check the lines of a block."""
        text = block.text
        if b"\r" in text:
            self.num_crlf += text.count(b"\r\n") + text.endswith(b"\r")
        may_be_special = may_hold_special_token(text)
        good_lines, good_numbers = [], []
        for number, line, row, fault in parse_block(block):
            if row is None or line is None:
                self._count_unread(number, fault)
                continue
            self.findings.rows += 1
            if self._is_good(number, row):
                good_lines.append(line)
                good_numbers.append(number)
            if may_be_special and may_hold_special_token(line):
                self._warn_of_characters(number, row)
        self.fingerprints.extend(good_lines, good_numbers)

    def _count_unread(self, number: int, fault: Fault | None) -> None:
        """Count a line that is blank, or that gave no row."""
        if fault is None:
            self.num_blank += 1
        else:
            self.findings.rows += 1
            self.findings.add_fault(number, fault)

    def _is_good(self, number: int, row: Row) -> bool:
        """Note everything that is wrong with a row; return whether nothing is."""
        columns = tuple(row)
        fault = self._column_faults.get(columns, UNKNOWN)
        if fault is UNKNOWN:
            fault = self._find_column_fault(columns)
        if fault or self.row_format is None:
            self.findings.add_fault(number, fault or UNKNOWN)
            return False
        faults = row_faults(row, self.row_format)
        if "tools" in row and (unused := unused_tools_fault(row, self.stage)):
            faults = (*faults, unused)
        if not faults:
            found = text_format(row, self.row_format)
            if found == self.findings.usual_format:
                return True
            faults = self._text_format_faults(number, found)
        for each in faults:
            self.findings.add_fault(number, each)
        return not faults

    def _find_column_fault(self, columns: tuple[str, ...]) -> Fault | None:
        """Return what is wrong with the columns of a row.

        It is remembered, because most rows have the columns of the first.
        """
        fault = self._column_fault(columns)
        is_short = sum(map(len, columns)) < LONGEST_REMEMBERED
        if is_short and len(self._column_faults) < COLUMN_SETS_REMEMBERED:
            self._column_faults[columns] = fault
        return fault

    def _column_fault(self, columns: tuple[str, ...]) -> Fault | None:
        if len(columns) > MAX_COLUMNS:
            message = f"has {len(columns):,} columns, more than {MAX_COLUMNS}"
            return Fault("row", "too_many_keys", message, "keep those that are trained on")
        usual = self.row_format
        if usual is None:
            fault = format_fault(columns, None, self.stage)
            return _with_suggestion(fault, columns, self.suggestion)
        for column in usual.columns:
            if column not in columns:
                fix = f"give {' and '.join(usual.columns)} in every row"
                return Fault(column, "missing", "is missing", fix)
        other = find_row_format(columns, self.stage)
        if other is not usual and other is not None:
            message = f"also has the columns of {other.id} rows, unlike most rows"
            return Fault("row", "other_kind", message, "give every row the same columns")
        return format_fault(columns, usual, self.stage)

    def _text_format_faults(self, number: int, found: TextFormat) -> list[Fault]:
        """Return a fault for a row that is written in another text format than earlier rows."""
        usual, first_lines = self.findings.usual_format, self.findings.first_lines
        first_lines.setdefault(found, number)
        if not usual:
            self.findings.usual_format = found
            return []
        begin = f"is {FORMAT_WORDS[found]} (first in line {first_lines[found]:,})"
        message = f"{begin}, but {FORMAT_WORDS[usual]} from line {first_lines[usual]:,} on"
        return [Fault("row", "late_type_change", message, "write all rows in the same way")]

    def _warn_of_characters(self, number: int, row: Row) -> None:
        fix = "remove it unless it is meant so"
        if found := find_special_token(row):
            field, token = found
            message = f"holds {token}, which the model may take for a special token"
            self.findings.add_warning(number, Fault(field, "special_token", message, fix))
        if nul_field := find_nul(row):
            message = "holds the character U+0000"
            self.findings.add_warning(number, Fault(nul_field, "nul_character", message, fix))


def _with_suggestion(
    fault: Fault | None, columns: tuple[str, ...], suggestion: Mapping[str, str]
) -> Fault | None:
    """Return a fault of unknown columns that offers to map them, if the row has them."""
    if not fault or not suggestion or not all(name in columns for name in suggestion.values()):
        return fault
    pairs = " and ".join(f"{theirs} to {ours}" for ours, theirs in suggestion.items())
    return fault._replace(fix=f"map {pairs}, or {fault.fix}")
