"""Check of a file: its first bytes, its row format, every row, and repeated rows.

Plain JSON, line by line, with nothing read into tables: what is accepted here is what the training
program reads.
"""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path

from core.dataset.check.duplicates import MAX_ROWS, Leak, find_leak
from core.dataset.check.scanner import Findings, Scanner
from core.dataset.formats import (
    TEXT_STAGE,
    columns_beside,
    detect_format,
    unknown_format_fault,
    usual_columns,
)
from core.dataset.reading.json_faults import BYTE_ORDER_MARK
from core.dataset.reading.layout import Layout, RowBlocks
from core.dataset.reading.lines import ByteSource
from core.dataset.reading.signatures import HEAD_BYTES, foreign_signature, wide_encoding
from core.dataset.reading.text_lines import first_rows, layout_of
from core.dataset.report import (
    LEAKED,
    MAX_COLUMNS,
    DatasetReport,
    RowProblem,
    counted,
    file_problem,
)
from core.dataset.suggestions import left_out, suggest_mapping
from core.training.contract.messages import Fault
from core.training.contract.row_columns import Row, is_media
from core.training.contract.row_formats import find_row_layout
from core.training.contract.row_reader import RIGHT_ANSWERS
from core.training.contract.stages import STAGES

LONGEST_NAME = 200
"""Characters of the name of a column that is offered for a mapping."""
MAX_LEFT_OUT = 5
"""Columns that a message names which a mapping would leave out."""
DUPLICATE = Fault(
    "row", "duplicate", "is the same as an earlier row", "drop it unless it is meant so"
)
PLAIN_TEXT = Fault(
    "file",
    "plain_text",
    "this is plain text, without questions and answers",
    f"choose stage {TEXT_STAGE}, which learns texts, or give rows of questions and answers",
)
TEXT_ONLY = "Only text is learnt: the model sees no pictures, sound or video."
LEAK = Fault(
    "eval row",
    LEAKED,
    "this row of the evaluation file is in the training file too",
    "drop it from one of the two",
)


@dataclass(frozen=True)
class Examination:
    """Report on a file, and the lines of its bad rows."""

    report: DatasetReport
    bad_lines: "array[int]" = field(default_factory=lambda: array("Q"))


def check_file(path: Path, stage: str = "sft", *, eval_path: Path | None = None) -> DatasetReport:
    """Return the report on a JSONL file or a JSON array, read as a stage reads it.

    Rows of `eval_path` that are in the file too are warned of, by their line in `eval_path`. Raises
    OSError if a file cannot be read, DatasetError if `eval_path` is not text.
    """
    return examine(path, stage, eval_path=eval_path).report


def examine(path: Path, stage: str = "sft", *, eval_path: Path | None = None) -> Examination:
    """Check a file as `check_file` does. Return the report and the lines of bad rows."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        if refused := _refuse(head):
            return Examination(refused)
        layout = layout_of(path)
        if refused := _refuse_layout(layout, stage):
            return Examination(refused)
        file.seek(0)
        source = ByteSource(file)
        scanner, detected = _detect(path, stage)
        scanner.scan_all(RowBlocks(source, layout))
    findings = scanner.findings
    leak = find_leak(path, eval_path, stage) if eval_path else Leak((), 0)
    num_duplicates = _warn_of_repeats(scanner, leak)
    report = replace(
        detected,
        rows=findings.rows,
        valid_rows=findings.rows - len(findings.bad_lines),
        format="conversational" if findings.has_messages else findings.usual_format,
        num_problems=findings.problem_counts.total(),
        problems=tuple(findings.problems),
        problem_groups=findings.problem_groups.all(),
        num_warnings=findings.warning_counts.total(),
        warnings=tuple(findings.warnings),
        warning_groups=findings.warning_groups.all(),
        counts=dict(findings.problem_counts + findings.warning_counts),
        notes=tuple(_notes(scanner, head, layout)),
        duplicates=num_duplicates,
        leaked=len(leak.lines),
        eval_rows=leak.num_eval_rows,
        sha256=source.digest.hexdigest(),
        repairs=tuple(_helpful_repairs(scanner, head, layout)),
        not_read=scanner.unread.found(),
        right_answers=scanner.num_right_answers,
        unwanted=scanner.num_unwanted,
    )
    return Examination(report, findings.bad_lines)


def _refuse(head: bytes) -> DatasetReport | None:
    """Return the report on a file whose first bytes show that it is not text in UTF-8."""
    if foreign := foreign_signature(head):
        message = f"this is {foreign.name}, not JSON lines"
        return DatasetReport.refused(file_problem("not_text", message, foreign.fix))
    if encoding := wide_encoding(head):
        message, fix = (
            f"the text is {encoding.upper()}, not UTF-8",
            "repair it, or save it as UTF-8",
        )
        return DatasetReport.refused(file_problem("wide_encoding", message, fix), ("encoding",))
    return None


def _refuse_layout(layout: Layout, stage: str) -> DatasetReport | None:
    """Return the report on a file whose layout a stage cannot read."""
    fault = layout.fault
    if layout.kind == "text" and not STAGES[stage].learns_every_token:
        fault = PLAIN_TEXT
    return DatasetReport.refused(RowProblem(1, *fault)) if fault else None


def _detect(path: Path, stage: str) -> tuple[Scanner, DatasetReport]:
    """Return a scanner for the row format of a file, and a report that says only this format."""
    rows, is_all = first_rows(path)
    names = dict.fromkeys(name for name in chain.from_iterable(rows) if len(name) <= LONGEST_NAME)
    found_columns = tuple(islice(names, MAX_COLUMNS))
    row_format, evidence = detect_format(rows, stage, is_all=is_all)
    empty = DatasetReport(evidence=evidence, found_columns=found_columns)
    suggestion = suggest_mapping(rows, stage) if row_format is None else {}
    unknown = partial(_unknown_fault, rows=rows, stage=stage, suggestion=suggestion)
    if row_format is None:
        return Scanner(stage, None, unknown), replace(empty, suggestion=suggestion)
    layouts = (find_row_layout(row, stage) for row in rows)
    detected = replace(
        empty,
        row_format=row_format.id,
        dataset_type=row_format.dataset_type,
        columns=usual_columns(layouts, row_format),
        beside=columns_beside(rows, row_format),
    )
    return Scanner(stage, row_format, unknown), detected


def _unknown_fault(
    columns: Sequence[str], *, rows: Sequence[Row], stage: str, suggestion: Mapping[str, str]
) -> Fault:
    """Return the fault of a row of unknown columns, which offers to map them if it has them."""
    fault = unknown_format_fault(columns, rows, stage)
    if not suggestion or not all(name in columns for name in suggestion.values()):
        return fault
    pairs = _listed([f"{theirs} to {ours}" for ours, theirs in suggestion.items()])
    lost = [name for name in left_out(rows, suggestion) if name in columns]
    leaves_out = f" ({_listed(lost[:MAX_LEFT_OUT])} would be left out)" if lost else ""
    return fault._replace(fix=f"map {pairs}{leaves_out}, or {fault.fix}")


def _listed(names: Sequence[str]) -> str:
    """Return names as `a, b and c`."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _warn_of_repeats(scanner: Scanner, leak: Leak) -> int:
    """Warn of rows that occur twice, here or in the evaluation data; return those of this file."""
    findings = scanner.findings
    num_duplicates = _warn(findings, scanner.fingerprints.repeated_lines(), DUPLICATE)
    _warn(findings, leak.lines, LEAK)
    findings.warnings.sort(key=lambda warning: warning.line)
    return num_duplicates


def _warn(findings: Findings, lines: Sequence[int], fault: Fault) -> int:
    """Note the same warning of several lines; return their number."""
    for number in lines:
        findings.add_warning(number, fault)
    return len(lines)


def _helpful_repairs(scanner: Scanner, head: bytes, layout: Layout) -> Iterator[str]:
    """Yield the ids of the repairs that would change the file."""
    counts = scanner.findings.problem_counts
    if head.startswith(BYTE_ORDER_MARK):
        yield "byte_order_mark"
    if scanner.num_crlf or counts["carriage_returns"]:
        yield "line_ends"
    if layout.is_usual and _has_scattered_objects(scanner.findings, head):
        yield "objects"
    if counts["trailing_comma"]:
        yield "trailing_commas"
    if layout.repair and not counts["not_an_array"]:
        yield layout.repair


def _has_scattered_objects(findings: Findings, head: bytes) -> bool:
    """Return whether the file holds objects, but not one on each line.

    Then some lines hold several objects, or no line holds a whole one.
    """
    counts = findings.problem_counts
    are_split = counts["truncated"] > 0 and not findings.usual_format
    begins_with_object = head.removeprefix(BYTE_ORDER_MARK).lstrip().startswith(b"{")
    return begins_with_object and (counts["several_values"] > 0 or are_split)


def _notes(scanner: Scanner, head: bytes, layout: Layout) -> Iterator[str]:
    """Yield facts about the file as a whole that are no problem."""
    if head.startswith(BYTE_ORDER_MARK):
        yield "The file begins with a byte order mark, which is left out."
    yield from layout.notes()
    if layout.is_usual and _has_scattered_objects(scanner.findings, head):
        yield "Some objects are over several lines, or several on one: a repair writes one a line."
    if scanner.num_crlf:
        yield f"CR LF, as on Windows, ends {counted(scanner.num_crlf, 'line')}, which is harmless."
    if scanner.num_blank:
        yield f"{counted(scanner.num_blank, 'blank line')} left out."
    if STAGES[scanner.stage].generates and not scanner.num_right_answers:
        yield (
            f"No row holds a right answer ({', '.join(RIGHT_ANSWERS[:4])}): "
            "the reward exact_match needs one in every row."
        )
    found = (each.field for each in scanner.unread.found() if each.changes_learning)
    if scanner.has_media or any(map(is_media, found)):
        yield TEXT_ONLY
    if scanner.num_unwanted and STAGES[scanner.stage].loss == "likelihood":
        answers = counted(scanner.num_unwanted, "answer")
        yield (
            f"The label marks {answers} as unwanted: the rows are for kto; {scanner.stage} "
            "learns them as good ones, unless you keep the wanted rows alone "
            "(Keep wanted rows, or --keep-wanted)."
        )
    if scanner.fingerprints.is_full:
        yield f"Repeated rows are counted among the first {MAX_ROWS:,} rows only."
