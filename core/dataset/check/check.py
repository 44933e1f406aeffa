"""Check of a file: its first bytes, its row format, every row, and repeated rows.

Plain JSON, line by line, with nothing read into tables: what is accepted here is what the training
program reads.
"""

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path

from core.dataset.check.duplicates import MAX_ROWS, Fingerprints
from core.dataset.check.findings import Findings
from core.dataset.check.scanner import MAX_COLUMNS, Scanner
from core.dataset.columns import suggest_mapping
from core.dataset.formats import detect_format
from core.dataset.reading.json_array import NOT_AN_ARRAY, JsonArray, is_array
from core.dataset.reading.json_faults import BYTE_ORDER_MARK
from core.dataset.reading.lines import ByteSource, blocks_of_lines
from core.dataset.reading.sample import first_rows
from core.dataset.reading.signatures import HEAD_BYTES, foreign_signature, wide_encoding
from core.dataset.report import LEAKED, DatasetReport, counted, file_problem
from core.training.contract.messages import Fault
from core.training.contract.row_formats import RowFormat

LONGEST_NAME = 200
"""Characters of the name of a column that is offered for a mapping."""
NO_ROWS = Fault("file", "no_rows", "there are no rows", "give one JSON object on each line")
DUPLICATE = Fault(
    "row", "duplicate", "is the same as an earlier row", "drop it unless it is meant so"
)
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


@dataclass(frozen=True)
class Detection:
    """Row format of a file, and why it was recognised."""

    row_format: RowFormat | None
    evidence: str
    found_columns: tuple[str, ...]
    suggestion: Mapping[str, str]


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
        detection = _detect(path, stage)
        file.seek(0)
        source = ByteSource(file)
        array_file = JsonArray(source) if is_array(head) else None
        scanner = Scanner(stage, detection.row_format, detection.suggestion)
        for block in array_file.blocks() if array_file else blocks_of_lines(source):
            scanner.scan(block)
    findings = scanner.findings
    if array_file and not array_file.is_whole:
        findings.add_fault(1, NOT_AN_ARRAY)
    if findings.rows == 0:
        findings.add_fault(1, NO_ROWS)
    report = _report(scanner, detection, head, source.digest.hexdigest(), eval_path)
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


def _detect(path: Path, stage: str) -> Detection:
    rows, is_all = first_rows(path)
    names = dict.fromkeys(name for name in chain.from_iterable(rows) if len(name) <= LONGEST_NAME)
    found = tuple(islice(names, MAX_COLUMNS))
    row_format, evidence = detect_format([tuple(row) for row in rows], stage, is_all=is_all)
    suggestion = {} if row_format else suggest_mapping(found, stage)
    return Detection(row_format, evidence, found, suggestion)


def _report(
    scanner: Scanner, detection: Detection, head: bytes, sha256: str, eval_path: Path | None
) -> DatasetReport:
    findings = scanner.findings
    duplicates = scanner.fingerprints.repeated_lines()
    _warn_of_lines(findings, duplicates, DUPLICATE)
    leaked = array("Q")
    if eval_path:
        leaked = Fingerprints.of_file(eval_path).lines_also_in(scanner.fingerprints)
        _warn_of_lines(findings, leaked, LEAK)
    findings.warnings.sort(key=lambda warning: warning.line)
    report = DatasetReport(
        rows=findings.rows,
        valid_rows=findings.rows - len(findings.bad_lines),
        dataset_type="",
        format=findings.text_format,
        columns=(),
        num_problems=findings.problem_counts.total(),
        problems=tuple(findings.problems),
        evidence=detection.evidence,
        num_warnings=findings.warning_counts.total(),
        warnings=tuple(findings.warnings),
        counts=dict(findings.problem_counts + findings.warning_counts),
        notes=tuple(_notes(scanner, head)),
        duplicates=len(duplicates),
        leaked=len(leaked),
        sha256=sha256,
        found_columns=detection.found_columns,
        suggestion=detection.suggestion,
        repairs=tuple(_helpful_repairs(scanner, head)),
    )
    if row_format := detection.row_format:
        report = replace(
            report,
            dataset_type=row_format.dataset_type,
            columns=row_format.columns,
            row_format=row_format.id,
        )
    return report


def _warn_of_lines(findings: Findings, lines: "array[int]", fault: Fault) -> None:
    for number in lines:
        findings.add_warning(number, fault)


def _helpful_repairs(scanner: Scanner, head: bytes) -> Iterator[str]:
    """Yield the ids of the repairs that would change the file."""
    counts = scanner.findings.problem_counts
    if head.startswith(BYTE_ORDER_MARK):
        yield "byte_order_mark"
    if scanner.num_crlf or counts["carriage_returns"]:
        yield "line_ends"
    if _has_scattered_objects(scanner.findings, head):
        yield "objects"
    if counts["trailing_comma"]:
        yield "trailing_commas"
    if is_array(head) and not counts["not_an_array"]:
        yield "array"


def _has_scattered_objects(findings: Findings, head: bytes) -> bool:
    """Return whether the file holds objects, but not one on each line.

    Then some lines hold several objects, or no line holds a whole one.
    """
    counts = findings.problem_counts
    are_split = counts["truncated"] > 0 and not findings.usual_format
    begins_with_object = head.removeprefix(BYTE_ORDER_MARK).lstrip().startswith(b"{")
    return begins_with_object and (counts["several_values"] > 0 or are_split)


def _notes(scanner: Scanner, head: bytes) -> Iterator[str]:
    """Yield facts about the file as a whole that are no problem."""
    if head.startswith(BYTE_ORDER_MARK):
        yield "The file begins with a byte order mark, which is left out."
    if is_array(head):
        yield "The file is one JSON array: its elements are the rows, and counted as lines."
    if scanner.num_crlf:
        yield f"CR LF, as on Windows, ends {counted(scanner.num_crlf, 'line')}, which is harmless."
    if scanner.num_blank:
        yield f"{counted(scanner.num_blank, 'blank line')} left out."
    if scanner.fingerprints.is_full:
        yield f"Repeated rows are counted among the first {MAX_ROWS:,} rows only."
