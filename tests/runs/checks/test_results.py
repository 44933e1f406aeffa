"""Results of checks: their numbers, their sentences and their JSON."""

from dataclasses import replace

import pytest

from core.job import SpecError
from core.runs.checks import PerplexityResult, SuiteResult, read_thresholds, sentences
from core.runs.checks.statistics import sign_test, wilson_interval
from core.training.contract.checks.suite_files import parse_suite

LINES = b'{"prompt": "%d", "exact": "yes", "category": "c"}\n'
SUITE = parse_suite(b"".join(LINES % number for number in range(12)), "mine")
YES, NO = "yes", "no"


def result_of(before: str, after: str) -> SuiteResult:
    """Return the result of answers that are written as letters: y passes."""
    words = {"y": YES, "n": NO}
    answers = ([words[letter] for letter in side] for side in (before, after))
    return SuiteResult.of_answers(SUITE, 7, *answers)


def test_the_sign_test_is_exact():
    assert sign_test(9, 0) == pytest.approx(2 / 2**9)
    assert sign_test(2, 1) == 1.0
    assert sign_test(0, 0) == 1.0


def test_the_interval_is_wilsons():
    assert wilson_interval(7, 10) == pytest.approx((0.3968, 0.8922), abs=1e-4)
    assert wilson_interval(85, 100) == pytest.approx((0.7672, 0.9069), abs=1e-4)
    assert wilson_interval(0, 10)[0] == 0.0
    assert wilson_interval(10, 10)[1] == pytest.approx(1.0)


def test_lost_and_gained_are_named_with_both_answers():
    result = result_of("yyyyyynnnnnn", "nnyyyyyynnnn")
    assert [each.prompt for each in result.lost] == ["0", "1"]
    assert [each.prompt for each in result.gained] == ["6", "7"]
    printed = result.to_json()
    assert (printed["total"], printed["before"], printed["after"]) == (12, 6, 6)
    assert printed["lost"][0]["after"] == NO
    assert printed["categories"] == {"c": {"total": 12, "before": 6, "after": 6}}


def test_only_a_rare_difference_is_more_than_chance():
    some = result_of("yyyyyyyyyyyy", "nnnnyyyyyyyy")
    many = result_of("yyyyyyyyyyyy", "nnnnnnyyyyyy")
    assert some.p_value == 0.125
    assert "can be chance" in sentences.change_sentence(some)
    assert "lost more than chance (p = 0.031)" in sentences.change_sentence(many)
    assert sentences.change_sentence(result_of("y" * 12, "y" * 12)).startswith("Nothing")


def test_a_result_is_read_back_from_its_file():
    result = result_of("yyyyyynnnnnn", "nnyyyyyynnnn")
    assert SuiteResult.from_json(result.to_file()) == result
    for damage in ({}, {"tests": 3}, {"step": "x"}):
        assert SuiteResult.from_json(damage and result.to_file() | damage) is None


def test_a_missed_threshold_is_said_in_words():
    results = {"mine": result_of("n" * 12, "yyynnnnnnnnn")}
    assert sentences.missed_thresholds(results, read_thresholds("mine=3", results)) == ()
    (sentence,) = sentences.missed_thresholds(results, read_thresholds(" mine = 4 ", results))
    assert sentence == "mine: 3 of 12 passed, 4 were asked for."


@pytest.mark.parametrize("text", ["mine", "mine=x", "other=3", "mine=3,", "=3"])
def test_a_wrong_threshold_is_refused(text: str):
    with pytest.raises(SpecError, match="at-least"):
        read_thresholds(text, ["mine"])


def test_perplexity_warns_of_memorised_rows():
    found = PerplexityResult(before=20.0, after=10.0, trained_rows=9.0, num_rows=5)
    assert len(sentences.perplexity_sentences(found)) == 1
    memorised = replace(found, trained_rows=2.0)
    assert "memorised" in sentences.perplexity_sentences(memorised)[1]
    worse = replace(found, after=30.0)
    assert "worse than before" in sentences.perplexity_sentences(worse)[1]
    assert sentences.perplexity_sentences(PerplexityResult()) == ()
