"""What is in a JSONL file: its dataset type and format, and every row that cannot be trained on, by line.

Plain JSON, line by line, with nothing read into tables: what is accepted here is what the training program reads.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from core.methods import STAGES

Format = Literal["standard", "conversational", ""]
LISTED_PROBLEMS = 100
MAX_LINE_BYTES = 8 * 2**20
ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True)
class DatasetType:
    """One way of writing rows: the keys that give it away, and what TRL calls it."""

    id: str
    dataset_type: str
    columns: tuple[str, ...]
    """Keys that a row must have, in the order that a person reads them."""


DATASET_TYPES = (
    DatasetType("messages", "language modeling", ("messages",)),
    DatasetType("prompt and completion", "prompt-completion", ("prompt", "completion")),
    DatasetType("instruction and output", "prompt-completion", ("instruction", "output")),
    DatasetType("question and answer", "prompt-completion", ("question", "answer")),
    DatasetType("text", "language modeling", ("text",)),
)


@dataclass(frozen=True)
class RowProblem:
    """One thing wrong with one line."""

    line: int
    """1-based."""
    field: str
    code: str
    message: str
    fix: str

    def __str__(self) -> str:
        return f"line {self.line}, {self.field}: {self.message}; {self.fix}"


@dataclass(frozen=True)
class DatasetReport:
    """What a file holds. `problems` lists the first hundred; `num_problems` counts all."""

    rows: int
    valid_rows: int
    dataset_type: str
    format: Format
    columns: tuple[str, ...]
    num_problems: int
    problems: tuple[RowProblem, ...]

    @property
    def is_usable(self) -> bool:
        return self.num_problems == 0 and self.valid_rows > 0

    def summary(self) -> str:
        """One line for a person: `1,204 rows · messages · 2 problems`."""
        trouble = (
            f"{self.num_problems:,} problem{'s' * (self.num_problems != 1)}" if self.num_problems else "no problems"
        )
        kind = " + ".join(self.columns) or "unknown columns"
        return f"{self.rows:,} rows · {kind} · {trouble}"

    def to_json(self) -> dict[str, object]:
        """The report as `check --json` prints it."""
        return asdict(self)


def check(path: Path, stage: str = "sft") -> DatasetReport:
    """Reads every line of a JSONL file. Raises OSError if it cannot be read."""
    found: DatasetType | None = None
    formats: set[Format] = set()
    problems: list[RowProblem] = []
    num_problems = rows = bad_rows = 0
    for line, row, trouble in _rows(path):
        rows += 1
        if row is not None:
            found = found or _type_of(row)
            trouble = _row_problems(line, row, found, stage)
            formats.add(_format_of(row, found))
        num_problems += len(trouble)
        bad_rows += bool(trouble)
        problems.extend(trouble[: LISTED_PROBLEMS - len(problems)])
    if rows == 0:
        problems.append(RowProblem(1, "file", "no_rows", "there are no rows", "give one JSON object on each line"))
        num_problems = 1
    return DatasetReport(
        rows=rows,
        valid_rows=rows - bad_rows,
        dataset_type=found.dataset_type if found else "",
        format="conversational" if "conversational" in formats else "standard" if "standard" in formats else "",
        columns=found.columns if found else (),
        num_problems=num_problems,
        problems=tuple(problems),
    )


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | None, list[RowProblem]]]:
    """(line number, the row, its problems) of each line that is not blank; no row where the line is not an object."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                yield number, None, [_too_long(number)]
                _skip_line(file)
            elif line.strip():
                yield number, *_parse(number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)


def _skip_line(file: Any) -> None:
    while (part := file.readline(MAX_LINE_BYTES)) and not part.endswith(b"\n"):
        pass


def _too_long(number: int) -> RowProblem:
    limit = f"{MAX_LINE_BYTES // 2**20} MiB"
    return RowProblem(number, "row", "line_too_long", f"the line is longer than {limit}", "split it into several rows")


def _parse(number: int, line: bytes) -> tuple[dict[str, Any] | None, list[RowProblem]]:
    try:
        row = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        where = f"byte {error.start + 1} is not UTF-8"
        return None, [RowProblem(number, "row", "not_utf8", where, "save the file as UTF-8")]
    except json.JSONDecodeError as error:
        where = f"not JSON at column {error.colno}: {error.msg}"
        return None, [RowProblem(number, "row", "not_json", where, "write one complete JSON object on each line")]
    except ValueError as error:
        return None, [RowProblem(number, "row", "not_json", str(error), "use numbers that JSON has")]
    except RecursionError:
        return None, [RowProblem(number, "row", "too_deep", "nested too deeply", "flatten the row")]
    if not isinstance(row, dict):
        message = f"a row must be an object, not a {type(row).__name__}"
        return None, [RowProblem(number, "row", "not_object", message, 'write {"messages": [...]} or the like')]
    return row, []


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _type_of(row: Mapping[str, Any]) -> DatasetType | None:
    return next((kind for kind in DATASET_TYPES if all(column in row for column in kind.columns)), None)


def _format_of(row: Mapping[str, Any], kind: DatasetType | None) -> Format:
    if kind is None:
        return ""
    return "conversational" if isinstance(row.get(kind.columns[0]), list) else "standard"


def _row_problems(line: int, row: Mapping[str, Any], kind: DatasetType | None, stage: str) -> list[RowProblem]:
    if kind is None:
        known = ", ".join(" + ".join(each.columns) for each in DATASET_TYPES)
        message = f"no known columns among {', '.join(map(str, row)) or 'none'}"
        return [RowProblem(line, "row", "unknown_columns", message, f"use one of: {known}")]
    if kind.dataset_type not in STAGES[stage].dataset_types:
        message = f"{kind.id} rows are {kind.dataset_type} data"
        return [
            RowProblem(line, "row", "wrong_type", message, f"{stage} needs {', '.join(STAGES[stage].dataset_types)}")
        ]
    if missing := [column for column in kind.columns if column not in row]:
        return [
            RowProblem(line, missing[0], "missing", "is missing", f"give {' and '.join(kind.columns)} in every row")
        ]
    return [problem for column in kind.columns for problem in _value_problems(line, column, row[column])]


def _value_problems(line: int, column: str, value: object) -> list[RowProblem]:
    if isinstance(value, list) and column in ("messages", "prompt", "completion"):
        return _message_problems(line, column, value)
    if not isinstance(value, str) or column == "messages":
        wanted = "a list of messages" if column == "messages" else "text"
        message = f"is {type(value).__name__}, not {wanted}"
        return [RowProblem(line, column, "wrong_kind", message, f"give {wanted}")]
    if not value.strip() and column != "prompt":
        return [RowProblem(line, column, "empty", "is empty", "fill it in, or drop the row")]
    return []


def _message_problems(line: int, column: str, messages: list[Any]) -> list[RowProblem]:
    if not messages:
        return [RowProblem(line, column, "empty", "has no messages", "give at least one question and one answer")]
    problems = []
    for index, message in enumerate(messages):
        name = f"{column}[{index}]"
        if not isinstance(message, dict) or "role" not in message:
            fix = 'write {"role": "user", "content": "..."}'
            problems.append(RowProblem(line, name, "not_message", "is not a message", fix))
        elif message["role"] not in ROLES:
            fault = f"{message['role']!r} is not a role"
            problems.append(RowProblem(line, f"{name}.role", "unknown_role", fault, f"use {', '.join(ROLES)}"))
        elif not isinstance(message.get("content"), str) and not message.get("tool_calls"):
            problems.append(
                RowProblem(line, f"{name}.content", "wrong_kind", "is not text", "give the text as a string")
            )
    if not problems and column == "messages" and not any(message["role"] == "assistant" for message in messages):
        problems.append(RowProblem(line, column, "no_answer", "has no assistant message", "add the answer to learn"))
    return problems
