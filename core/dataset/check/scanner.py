"""One way through a file: every line goes through the byte pass and the schema pass, once. Opens no file itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from core.dataset.check.duplicates import Fingerprints
from core.dataset.check.findings import Findings
from core.dataset.check.lines import Block, parse_block
from core.dataset.check.special_tokens import has_nul, may_hold_special, special_tokens
from core.dataset.rewrite.mapping import mapped
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

MAX_KEYS = 64
SHAPES_REMEMBERED = 1000
LONGEST_SHAPE_REMEMBERED = 2000
"""Characters of a row's keys: what is remembered of a file stays small whatever the file."""
UNSEEN = Fault("", "", "", "")
FORMAT_WORDS: Mapping[TextFormat, str] = {"standard": "text", "conversational": "messages"}


@dataclass(frozen=True)
class Wish:
    """How a file is to be read."""

    stage: str = "sft"
    kind: str = ""
    """Id in DATASET_TYPES; empty detects it."""
    columns: Mapping[str, str] | None = None
    """Column of ours -> column of the file; none leaves rows as they are."""
    eval_path: Path | None = None
    """A second file, whose rows should not be in the first."""

    def read(self, row: Row) -> Row:
        """The row under our names."""
        return mapped(row, self.columns) if self.columns else row


class Walk:
    """Takes a file block by block and keeps what it finds."""

    def __init__(self, wish: Wish, kind: RowFormat | None, suggestion: Mapping[str, str]):
        self.wish, self.kind, self.suggestion = wish, kind, suggestion
        self.findings = Findings()
        self.fingerprints = Fingerprints()
        self.num_blank = 0
        self.num_crlf = 0
        self._shapes: dict[tuple[str, ...], Fault | None] = {}

    def take(self, block: Block) -> None:
        """Checks the lines of a block."""
        text, findings, columns = block.text, self.findings, self.wish.columns
        if b"\r" in text:
            self.num_crlf += text.count(b"\r\n") + text.endswith(b"\r")
        may_be_special = may_hold_special(text)
        good_lines, good_numbers = [], []
        for number, line, row, fault in parse_block(block):
            if row is None or line is None:
                self._count_unread(number, fault)
                continue
            findings.rows += 1
            if self._is_good(number, self.wish.read(row) if columns else row):
                good_lines.append(line)
                good_numbers.append(number)
            if may_be_special and may_hold_special(line):
                self._warn_of_signs(number, row)
        self.fingerprints.extend(good_lines, good_numbers)

    def _count_unread(self, number: int, fault: Fault | None) -> None:
        """A line that is blank, or that gave no row."""
        if fault is None:
            self.num_blank += 1
        else:
            self.findings.rows += 1
            self.findings.add_fault(number, fault)

    def _is_good(self, number: int, row: Row) -> bool:
        """Notes everything that is wrong with a row."""
        keys = tuple(row)
        shape_fault = self._shapes.get(keys, UNSEEN)
        if shape_fault is UNSEEN:
            shape_fault = self._judge_shape(keys)
        if shape_fault or self.kind is None:
            self.findings.add_fault(number, shape_fault or UNSEEN)
            return False
        faults = row_faults(row, self.kind)
        if unused := row.get("tools") and unused_tools_fault(row, self.wish.stage):
            faults = (*faults, unused)
        if not faults and (format := text_format(row, self.kind)) != self.findings.usual_format:
            faults = self._format_faults(number, format)
        for fault in faults:
            self.findings.add_fault(number, fault)
        return not faults

    def _judge_shape(self, keys: tuple[str, ...]) -> Fault | None:
        """What is wrong with a row by its keys alone; remembered, since most rows have the keys of the first."""
        fault = self._shape_fault(keys)
        if len(self._shapes) < SHAPES_REMEMBERED and sum(map(len, keys)) < LONGEST_SHAPE_REMEMBERED:
            self._shapes[keys] = fault
        return fault

    def _shape_fault(self, keys: tuple[str, ...]) -> Fault | None:
        if len(keys) > MAX_KEYS:
            message = f"has {len(keys):,} columns, more than {MAX_KEYS}"
            return Fault("row", "too_many_keys", message, "keep those that are trained on")
        if self.kind is None:
            unknown = format_fault(keys, None, self.wish.stage)
            return _with_suggestion(unknown, keys, self.suggestion)
        return _kind_fault(keys, self.kind, self.wish)

    def _format_faults(self, number: int, format: TextFormat) -> tuple[Fault, ...]:
        """A row that is written in another format than the rows before it."""
        first_lines = self.findings.first_lines
        first_lines.setdefault(format, number)
        if not self.findings.usual_format:
            self.findings.usual_format = format
            return ()
        usual, line = next(iter(first_lines.items()))
        begin = first_lines[format]
        message = f"is {FORMAT_WORDS[format]} (first in line {begin:,}), but {FORMAT_WORDS[usual]} from line {line:,} on"
        return (Fault("row", "late_type_change", message, "write all rows in the same way"),)

    def _warn_of_signs(self, number: int, row: Row) -> None:
        if found := special_tokens(row):
            field, token = found
            message = f"holds {token}, which the model may take for a sign of its own"
            self.findings.add_warning(
                number, Fault(field, "special_token", message, "remove it unless it is meant so")
            )
        if field_with_nul := has_nul(row):
            fix = "remove it unless it is meant so"
            self.findings.add_warning(
                number, Fault(field_with_nul, "nul_character", "holds the character U+0000", fix)
            )


def _kind_fault(keys: tuple[str, ...], kind: RowFormat, wish: Wish) -> Fault | None:
    if missing := [column for column in kind.columns if column not in keys]:
        return Fault(
            missing[0], "missing", "is missing", f"give {' and '.join(kind.columns)} in every row"
        )
    if not wish.kind and (other := find_row_format(keys, wish.stage)) is not kind:
        message = (
            f"also has the columns of {other.id if other else 'nothing'} rows, unlike most rows"
        )
        return Fault("row", "other_kind", message, "give every row the same columns")
    return format_fault(keys, kind, wish.stage)


def _with_suggestion(
    fault: Fault | None, keys: tuple[str, ...], suggestion: Mapping[str, str]
) -> Fault | None:
    """Return a fault of unknown columns that offers to map them, if the row has them."""
    if not fault or not suggestion or not all(theirs in keys for theirs in suggestion.values()):
        return fault
    pairs = " and ".join(f"{theirs} to {ours}" for ours, theirs in suggestion.items())
    return fault._replace(fix=f"map {pairs}, or {fault.fix}")
