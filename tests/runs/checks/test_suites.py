"""Suites: reading them from files, and what is said of lines that cannot be used."""

import time
from pathlib import Path

import pytest

from core.job import SpecError
from core.runs.checks import find_suite, folders_of, names_in
from core.runs.checks.identity import Identity, held_out_suite, identity_suite
from core.runs.checks.library import DEMO, SHIPPED
from core.training.contract.checks.patterns import search_all
from core.training.contract.checks.scoring import judge
from core.training.contract.checks.suite import UnusableSuite
from core.training.contract.checks.suite_files import MAX_TESTS, parse_suite, read_suite, to_lines

CALL = '<tool_call>\n{"name": "book", "arguments": {"seats": 2}}\n</tool_call>'
HOSTILE = r"(a+)+$"
YEARS_OF_SEARCHING = "a" * 60 + "b"


def fault_of(line: str) -> str:
    with pytest.raises(UnusableSuite) as caught:
        parse_suite(line.encode(), "mine")
    (fault,) = caught.value.faults
    assert fault.line == 1
    return f"{fault.field} {fault.message}; {fault.fix}"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"prompt": "Hi"}', "passes with any answer"),
        ("{", "is not JSON"),
        ("[1]", "is [1], not an object"),
        ('{"exact": "a"}', "prompt is missing"),
        ('{"prompt": "a", "messages": [], "exact": "a"}', "messages is [], not a list"),
        ('{"prompt": "a", "exakt": "a"}', "exakt is unknown"),
        ('{"prompt": "a", "regex": "("}', "regex is no regular expression"),
        ('{"prompt": "a", "number": "4"}', 'number is "4", not a number'),
        ('{"prompt": "a", "number": NaN}', "number is NaN, not a number"),
        ('{"prompt": "a", "exact": "a", "tolerance": 1}', "tolerance is there without number"),
        ('{"prompt": "a", "choice": ["x", "y"]}', "answer is missing"),
        ('{"prompt": "a", "choice": ["x", "y"], "answer": "z"}', 'answer "z" is none'),
        ('{"prompt": "a", "choice": ["x", "x"], "answer": 0}', "two or more different"),
        ('{"prompt": "a", "choice": ["x", "y"], "answer": 0, "exact": "x"}', "be combined"),
        ('{"prompt": "a", "json": {"k": "money"}}', 'json names the type "money"'),
        ('{"prompt": "a", "tool_call": "f"}', 'tool_call is "f", not a call'),
        ('{"prompt": "a", "refusal": 1}', "refusal is 1; write true or false"),
        ('{"prompt": "a", "exact": "a", "max_new_tokens": 0}', "max_new_tokens is 0"),
        (f'{{"prompt": "a", "exact": {"[" * 100_000}', "is not JSON"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(line: str, says: str):
    assert says in fault_of(line)


def test_a_toml_suite_names_the_line_of_a_test(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text('[[test]]\nprompt = "a"\nexact = "b"\n\n[[test]]\nprompt = "c"\n')
    with pytest.raises(UnusableSuite) as caught:
        read_suite(path)
    assert [fault.line for fault in caught.value.faults] == [5]


def test_a_file_that_is_no_suite_says_what_one_is(tmp_path: Path):
    for name, content in (("a.toml", "[[test]"), ("b.jsonl", ""), ("c.txt", "{}")):
        (tmp_path / name).write_text(content)
        with pytest.raises(UnusableSuite) as caught:
            read_suite(tmp_path / name)
        assert "write" in caught.value.faults[0].fix


def test_a_suite_that_is_too_long_is_refused():
    with pytest.raises(UnusableSuite, match="more than 1,000 tests"):
        parse_suite(b'{"prompt": "a", "exact": "b"}\n' * (MAX_TESTS + 1), "long")


def test_the_hash_is_that_of_the_tests():
    line = b'{"prompt": "a", "exact": "b"}\n'
    same = b'\n{"exact": "b",  "prompt": "a"}\n'
    assert parse_suite(line, "one").sha256 == parse_suite(same, "other").sha256
    assert parse_suite(line, "one").sha256 != parse_suite(line * 2, "one").sha256


@pytest.mark.parametrize(
    ("condition", "right", "wrong"),
    [
        ('"exact": ["Yes.", "Yes"]', "Yes", "Yes, sir"),
        ('"contains": ["red", "BLUE"]', "Blue and red", "red"),
        ('"not_contains": "sorry"', "Of course", "Sorry, no"),
        ('"regex": "^[0-9]+$"', "42", "x42"),
        ('"number": 1234.5', "That is 1,234.5", "That is 1234"),
        ('"number": 212, "tolerance": 1', "100 C is 212.4 F", "-212"),
        ('"json": ["a"]', '```json\n{"a": 1}\n```', "a: 1"),
        ('"json": {"n": "number", "b": "boolean"}', '{"n": 1, "b": true}', '{"n": true, "b": 1}'),
        ('"choice": ["x", "y"], "answer": "y"', "y", "x"),
        ('"tool_call": {"name": "book"}', CALL, "book(2)"),
        ('"tool_call": {"name": "book", "arguments": {"seats": 2}}', CALL, CALL.replace("2", "3")),
        ('"refusal": true', "I can\u2019t help with that.", "Sure!"),
        ('"refusal": false', "<think>I cannot say</think>Sure!", "I cannot say"),
    ],
)
def test_an_answer_passes_if_it_is_as_asked(condition: str, right: str, wrong: str):
    suite = parse_suite(f'{{"prompt": "a", {condition}}}'.encode(), "s")
    assert judge(suite, [right]) == (True,)
    assert judge(suite, [wrong]) == (False,)
    assert suite.tests[0].expected


def test_a_search_that_would_take_years_counts_as_failed():
    began = time.monotonic()
    pairs = [("a", "a"), (HOSTILE, YEARS_OF_SEARCHING), ("b", "a"), ("c", "c")]
    assert search_all(pairs, seconds=0.3) == (True, None, False, True)
    assert time.monotonic() - began < 20


def test_many_slow_searches_end_as_well():
    pairs = [(HOSTILE, YEARS_OF_SEARCHING)] * 500
    assert search_all(pairs, seconds=0.01) == (None,) * 500


def test_shipped_suites_are_sound():
    for folder in (SHIPPED, DEMO):
        for name in names_in([folder]):
            assert find_suite(name, [folder]).tests
    capabilities = find_suite("capabilities", [SHIPPED])
    assert len(capabilities.tests) == 36
    assert len({test.category for test in capabilities.tests}) == 9
    assert names_in(folders_of(True)) == ("capabilities", "identity")


def test_an_unknown_suite_names_those_that_there_are():
    with pytest.raises(SpecError, match="name one of capabilities"):
        find_suite("identiti", [SHIPPED])


def test_three_answers_make_a_hundred_questions():
    suite = identity_suite(Identity("Pip", "Madam Hem", "sew"))
    assert len(suite.tests) == 100
    assert len({test.prompt for test in suite.tests}) == 100
    with pytest.raises(SpecError, match="give at least its name"):
        identity_suite(Identity())


def test_held_out_rows_make_a_suite():
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    rows = [{"messages": messages}, {"prompt": "A", "completion": " B"}, {"text": "plain"}]
    suite = held_out_suite(rows)
    assert [(test.prompt, test.exact) for test in suite.tests] == [
        ("Hi", ("Hello",)),
        ("A", ("B",)),
    ]
    assert parse_suite(to_lines(suite).encode(), "again").sha256 == suite.sha256
    with pytest.raises(SpecError, match="no held-out row"):
        held_out_suite([{"text": "plain"}])
