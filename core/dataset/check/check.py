"""The check of a file: its first bytes, its kind, every row, and what rows have in common. Changes nothing.

Plain JSON, line by line, with nothing read into tables: what is accepted here is what the training program reads.
"""

from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

from core.dataset.check.diagnosis import BYTE_ORDER_MARK
from core.dataset.check.duplicates import MOST_ROWS, Fingerprints
from core.dataset.check.findings import Findings
from core.dataset.check.json_array import NOT_AN_ARRAY, Elements, is_array
from core.dataset.check.lines import Source, blocks_of_lines, parse
from core.dataset.check.scanner import MAX_KEYS, Walk, Wish
from core.dataset.check.signatures import HEAD_BYTES, foreign_signature, wide_encoding
from core.dataset.formats import detect_format
from core.dataset.report import DatasetReport, counted, file_problem
from core.dataset.rewrite.mapping import suggest_mapping
from core.training.contract.messages import Fault
from core.training.contract.row_columns import Row
from core.training.contract.row_formats import ROW_FORMATS_BY_ID, RowFormat

ROWS_OF_EVIDENCE = 1000
LONGEST_NAME = 200
"""Characters of the name of a column that is offered for a mapping."""
BYTES_OF_EVIDENCE = 16 * 2**20
"""Where the kind of a file is looked for; a file without a sound row in there has none."""


def _silent(_num_bytes: int) -> None:
    """Tells nobody."""


@dataclass(frozen=True)
class Examination:
    """A report, and the lines that it is about."""

    report: DatasetReport
    bad_lines: "array[int]" = field(default_factory=lambda: array("Q"))
    duplicate_lines: "array[int]" = field(default_factory=lambda: array("Q"))


@dataclass(frozen=True)
class Detection:
    """What a file was taken for, and why."""

    kind: RowFormat | None
    evidence: str
    found_columns: tuple[str, ...]
    suggestion: Mapping[str, str] = field(default_factory=dict)


def check_file(
    path: Path,
    stage: str = "sft",
    *,
    kind: str = "",
    columns: Mapping[str, str] | None = None,
    eval_path: Path | None = None,
    on_progress: Callable[[int], None] = _silent,
) -> DatasetReport:
    """Reads every line of a JSONL file, or every element of a JSON array.

    `kind` is an id in ROW_FORMATS, for rows that fit several; `columns` says which column of the file stands for
    each of ours (ours -> theirs), the others being left out. A file that is usable only with these has to be written
    with `map_columns` before it is trained on. `on_progress` is told the number of bytes read so far.

    Raises OSError if a file cannot be read.
    """
    return examine(path, Wish(stage, kind, columns, eval_path), on_progress).report


def examine(path: Path, wish: Wish, on_progress: Callable[[int], None] = _silent) -> Examination:
    """The check, with the lines of bad and of repeated rows. Raises OSError."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        if refused := _refuse(head):
            return Examination(refused)
        file.seek(0)
        detection = _detect(Source(file), head, wish)
        file.seek(0)
        source = Source(file, on_bytes=on_progress)
        walk, elements = Walk(wish, detection.kind, detection.suggestion), None
        if is_array(head):
            elements = Elements(source)
        for block in elements.blocks() if elements else blocks_of_lines(source):
            walk.take(block)
    if elements and not elements.is_whole:
        walk.findings.add_fault(1, NOT_AN_ARRAY)
    return _conclude(walk, detection, head, source.digest.hexdigest())


def first_rows(path: Path) -> list[Row]:
    """The first sound rows of a file, at most ROWS_OF_EVIDENCE. Raises OSError."""
    with path.open("rb") as file:
        as_array = is_array(file.read(HEAD_BYTES))
        file.seek(0)
        return list(islice(_sound_rows(Source(file), as_array), ROWS_OF_EVIDENCE))


def _refuse(head: bytes) -> DatasetReport | None:
    """The report on a file that its first bytes give away."""
    if foreign := foreign_signature(head):
        return DatasetReport.refused(
            file_problem("not_text", f"this is {foreign.name}, not JSON lines", foreign.fix)
        )
    if encoding := wide_encoding(head):
        message = f"the text is {encoding.upper()}, not UTF-8"
        return DatasetReport.refused(
            file_problem("wide_encoding", message, "repair it, or save it as UTF-8"), ("encoding",)
        )
    return None


def _detect(source: Source, head: bytes, wish: Wish) -> Detection:
    """What the first rows are."""
    rows = _sound_rows(source, is_array(head))
    first = list(islice(rows, ROWS_OF_EVIDENCE))
    names = dict.fromkeys(name for name in chain.from_iterable(first) if len(name) <= LONGEST_NAME)
    found = tuple(islice(names, MAX_KEYS))
    if wish.kind:
        return Detection(ROW_FORMATS_BY_ID[wish.kind], "chosen by hand", found)
    is_all = next(rows, None) is None and source.is_at_end
    kind, evidence = detect_format(
        [tuple(wish.read(row)) for row in first], wish.stage, is_all=is_all
    )
    return Detection(kind, evidence, found, {} if kind else suggest_mapping(found, wish.stage))


def _sound_rows(source: Source, as_array: bool) -> Iterator[Row]:
    """The rows at the beginning of a file, the bad ones left out."""
    for block in Elements(source).blocks() if as_array else blocks_of_lines(source):
        for line in block.lines:
            row, _fault = parse(line)
            if row is not None:
                yield row
        if source.num_bytes > BYTES_OF_EVIDENCE:
            return


def _conclude(walk: Walk, detection: Detection, head: bytes, sha256: str) -> Examination:
    findings, kind = walk.findings, detection.kind
    duplicates, leaked = _warn_of_twins(walk)
    if findings.rows == 0:
        findings.add_fault(
            1, Fault("file", "no_rows", "there are no rows", "give one JSON object on each line")
        )
    findings.warnings.sort(key=lambda warning: warning.line)
    repairs = {
        "byte_order_mark": head.startswith(BYTE_ORDER_MARK),
        "line_ends": walk.num_crlf > 0 or findings.problem_counts["carriage_returns"] > 0,
        "objects": _has_scattered_objects(head, findings),
        "trailing_commas": findings.problem_counts["trailing_comma"] > 0,
        "array": is_array(head) and findings.problem_counts["not_an_array"] == 0,
    }
    report = DatasetReport(
        rows=findings.rows,
        valid_rows=findings.rows - findings.num_bad_rows,
        dataset_type=kind.dataset_type if kind else "",
        format="conversational"
        if "conversational" in findings.first_lines
        else next(iter(findings.first_lines), ""),
        columns=kind.columns if kind else (),
        num_problems=findings.problem_counts.total(),
        problems=tuple(findings.problems),
        row_format=kind.id if kind else "",
        evidence=detection.evidence,
        num_warnings=findings.warning_counts.total(),
        warnings=tuple(findings.warnings),
        counts=dict(findings.problem_counts + findings.warning_counts),
        notes=tuple(_notes(walk, head)),
        duplicates=len(duplicates),
        leaked=leaked,
        sha256=sha256,
        found_columns=detection.found_columns,
        suggestion=detection.suggestion,
        repairs=tuple(name for name, helps in repairs.items() if helps),
    )
    return Examination(report, findings.bad_lines, duplicates)


def _has_scattered_objects(head: bytes, findings: Findings) -> bool:
    """True if the file holds objects, but not one on a line: several on some, or none that is whole."""
    counts = findings.problem_counts
    are_scattered = counts["several_values"] > 0 or (
        counts["truncated"] > 0 and not findings.usual_format
    )
    return are_scattered and head.removeprefix(BYTE_ORDER_MARK).lstrip().startswith(b"{")


def _notes(walk: Walk, head: bytes) -> Iterator[str]:
    """Facts about the file as a whole that are no problem."""
    if head.startswith(BYTE_ORDER_MARK):
        yield "The file begins with a byte order mark, which is left out."
    if is_array(head):
        yield "The file is one JSON array: its elements are the rows, and counted as lines."
    if walk.num_crlf:
        yield f"CR LF, as on Windows, ends {counted(walk.num_crlf, 'line')}, which is harmless."
    if walk.num_blank:
        yield f"{counted(walk.num_blank, 'blank line')} left out."
    if walk.fingerprints.is_full:
        yield f"Repeated rows are counted among the first {MOST_ROWS:,} rows only."


def _warn_of_twins(walk: Walk) -> tuple["array[int]", int]:
    """(the lines of repeated rows, how many rows of the evaluation file are in this one too)."""
    duplicates = walk.fingerprints.repeated_lines()
    for number in duplicates:
        fault = Fault(
            "row", "duplicate", "is the same as an earlier row", "drop it unless it is meant so"
        )
        walk.findings.add_warning(number, fault)
    if walk.wish.eval_path is None:
        return duplicates, 0
    leaked = _fingerprints(walk.wish.eval_path).lines_also_in(walk.fingerprints)
    for number in leaked:
        message = "this row of the evaluation file is in the training file too"
        walk.findings.add_warning(
            number, Fault("eval row", "leaked", message, "drop it from one of the two")
        )
    return duplicates, len(leaked)


def _fingerprints(path: Path) -> Fingerprints:
    """The rows of a second file, which is checked by itself."""
    prints = Fingerprints()
    with path.open("rb") as file:
        for block in blocks_of_lines(Source(file)):
            rows = [
                (line, number)
                for line, number in zip(block.lines, block.numbers, strict=True)
                if line
            ]
            prints.extend([line for line, _number in rows], [number for _line, number in rows])
    return prints
