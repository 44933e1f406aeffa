"""Scan a file once: parse each line, validate its row, and note what is found. Opens no file."""

from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from core.dataset.check.duplicates import Fingerprints
from core.dataset.check.groups import Groups
from core.dataset.check.plain_rows import PlainRows
from core.dataset.check.special_tokens import (
    find_nul,
    find_special_token,
    may_hold_special_token,
)
from core.dataset.check.unread import (
    MEDIA_TAG_BYTES,
    UnreadColumns,
    UnreadCounter,
    is_repeated,
    may_be_question,
    media_tag,
    texts_in,
)
from core.dataset.reading.json_elements import NOT_AN_ARRAY
from core.dataset.reading.layout import RowBlocks
from core.dataset.reading.lines import LineBlock, parse_block
from core.dataset.report import MAX_COLUMNS, RowProblem
from core.training.contract.messages import Fault
from core.training.contract.row_columns import Row, is_media, truth_of
from core.training.contract.row_formats import (
    LABEL,
    RowFormat,
    RowLayout,
    TextFormat,
    find_row_layout,
    format_fault,
    is_media_value,
    row_layout_of,
)
from core.training.contract.row_reader import Reading, read_columns, text_format

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


@dataclass(frozen=True)
class KnownColumns:
    """Facts about rows with certain columns, remembered because most rows have the same."""

    fault: Fault | None
    """Why no such row can be read."""
    layout: RowLayout | None = None
    plain: PlainRows | None = None
    unread: UnreadColumns | None = None


class Scanner:
    """Scanner of one file: takes it block by block and collects findings."""

    def __init__(
        self, stage: str, row_format: RowFormat | None, unknown: Callable[[Sequence[str]], Fault]
    ) -> None:
        self.stage, self.row_format = stage, row_format
        self.findings = Findings()
        self.fingerprints = Fingerprints()
        self.unread = UnreadCounter()
        self.num_blank = 0
        self.num_crlf = 0
        self.num_unwanted = 0
        """Rows whose label, which is not read, says that the answer is not wanted."""
        self.has_media = False
        """True if a column that is not read holds pictures, sound or video."""
        self.num_right_answers = 0
        self._unknown = unknown
        self._known_columns: dict[tuple[str, ...], KnownColumns] = {}

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
        # To look for one byte is faster than the pattern, and many files have none.
        has_tags = b"<" in text and MEDIA_TAG_BYTES.search(text) is not None
        good_lines, good_numbers = [], []
        for number, line, row, fault in parse_block(block):
            if row is None or line is None:
                self._count_unread(number, fault)
                continue
            self.findings.rows += 1
            if self._is_good(number, row, has_tags):
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

    def _is_good(self, number: int, row: Row, has_tags: bool) -> bool:
        """Note everything that is wrong with a row or not read; return whether nothing is wrong.

        `has_tags` says that the text may hold marks of pictures.
        """
        columns = tuple(row)
        known = self._known_columns.get(columns) or self._know_columns(columns)
        if known.fault or known.layout is None or known.unread is None:
            self.findings.add_fault(number, known.fault or UNKNOWN)
            return False
        unread = known.unread
        held, lost = unread.held_in(row)
        beside = list(held)
        if known.plain and not lost and not has_tags and known.plain.is_sound(row):
            faults: Sequence[Fault] = ()
            found = known.plain.text_format
        else:
            reading = read_columns(row, known.layout, self.stage)
            faults = reading.faults
            found = text_format(reading.row, known.layout)
            if reading.unread or has_tags:
                self._name_unread_places(number, reading, has_tags)
            if lost or reading.answer_column or unread.may_lack_question:
                lacks_question = unread.may_lack_question and not reading.row.get("prompt")
                beside = self._name_lost_columns(number, held, lost, reading, lacks_question)
        for name in beside:
            self.unread.add(name, number, changes_learning=False)
        if not faults:
            if found == self.findings.usual_format:
                return True
            faults = self._text_format_faults(number, found)
        for each in faults:
            self.findings.add_fault(number, each)
        return not faults

    def _name_unread_places(self, number: int, reading: Reading, has_tags: bool) -> None:
        """Count what is not read inside the columns that are."""
        for name, matters in reading.unread.items():
            self.unread.add(name, number, changes_learning=matters)
        if has_tags and (tag := media_tag(reading.row)):
            self.unread.add(tag, number, changes_learning=True)

    def _name_lost_columns(
        self,
        number: int,
        held: Mapping[str, object],
        lost: Sequence[str],
        reading: Reading,
        lacks_question: bool,
    ) -> list[str]:
        """Count the columns that would change learning; return the others.

        `held` are all columns that hold something, `lost` those that matter by themselves.
        """
        if reading.answer_column:
            self.num_right_answers += 1
        answer_column = reading.answer_column.partition(".")[0]
        harmless = []
        read_texts = list(texts_in(reading.row))
        for name, value in held.items():
            if name == answer_column or name in reading.unread:
                continue
            if name not in lost and not (lacks_question and may_be_question(value)):
                harmless.append(name)
                continue
            if name in LABEL and truth_of(value) is False:
                self.num_unwanted += 1
            is_shown = is_media(name) or is_media_value(value)
            self.has_media = self.has_media or is_shown
            is_elsewhere = not is_shown and is_repeated(value, read_texts)
            self.unread.add(name, number, changes_learning=not is_elsewhere)
        return harmless

    def _know_columns(self, columns: tuple[str, ...]) -> KnownColumns:
        """Return what is known of rows with these columns, and remember it."""
        known = KnownColumns(self._column_fault(columns))
        if known.fault is None and self.row_format:
            layout = row_layout_of(self.row_format, columns)
            if layout:
                plain = PlainRows.of(layout, self.stage)
                known = KnownColumns(None, layout, plain, UnreadColumns(columns, layout))
        is_short = sum(map(len, columns)) < LONGEST_REMEMBERED
        if is_short and len(self._known_columns) < COLUMN_SETS_REMEMBERED:
            self._known_columns[columns] = known
        return known

    def _column_fault(self, columns: tuple[str, ...]) -> Fault | None:
        if len(columns) > MAX_COLUMNS:
            message = f"has {len(columns):,} columns, more than {MAX_COLUMNS}"
            return Fault("row", "too_many_keys", message, "keep those that are trained on")
        usual = self.row_format
        if usual is None:
            return self._unknown(columns)
        if row_layout_of(usual, columns) is None:
            for names in usual.required.values():
                if not any(name in columns for name in names):
                    fix = f"give {' and '.join(usual.columns)} in every row"
                    return Fault(names[0], "missing", "is missing", fix)
        other = find_row_layout(columns, self.stage)
        if other and other.row_format is not usual:
            message = f"also has the columns of {other.row_format.id} rows, unlike most rows"
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
