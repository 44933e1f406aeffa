"""Common mistakes in JSON are named whichever Python reads it: its own words for them change."""

from pathlib import Path

import pytest

from core.dataset import check_file

ROW = '{"text": "a"}\n'


@pytest.mark.parametrize(
    "line, code",
    [
        ('{"text": "a",}', "trailing_comma"),
        ('{"text": "a" , }', "trailing_comma"),
        ('{"text": ["a",], "b": 2}', "trailing_comma"),
        ('{"text": "a",,}', "not_json"),
        ("{,}", "not_json"),
        ('{"text": "a",', "truncated"),
        ('{"text": "a', "truncated"),
        ('{"text": "a,', "truncated"),
        ('{"text": "a\\', "truncated"),
        ('{"text": "a\tb"}', "control_character"),
        ('{"text": \x01}', "not_json"),
        ('{"text": "a"} {"text": "b"}', "several_values"),
        ("{'text': 'a'}", "quotes"),
        ('{"text": None}', "python_literal"),
        ('{"text": "a" // b', "comment"),
        ('{"text" "a"}', "not_json"),
    ],
)
def test_a_mistake_is_named(line: str, code: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(f"{ROW}{line}\n{ROW}")
    report = check_file(file)
    assert [(problem.line, problem.code) for problem in report.problems] == [(2, code)]


def test_a_comma_too_many_has_the_column_of_the_bracket(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "a", }\n')
    (problem,) = check_file(file).problems
    assert "column 15: a comma before a closing bracket" in problem.message
