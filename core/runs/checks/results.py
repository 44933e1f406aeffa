"""Results of a suite before and after a training: records, their numbers and their JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from core.runs.checks.statistics import sign_test
from core.training.contract.checks.scoring import judge
from core.training.contract.checks.suite import Suite
from core.training.contract.typed_json import WrongType, types_of, value_as

MAX_NAME = 100
"""Characters of a name that are shown."""
REQUIRED = ("name", "total", "before", "after")
"""Fields without which a kept result says nothing."""


@dataclass(frozen=True)
class Outcome:
    """One test with the answers before and after the training."""

    prompt: str
    category: str
    expected: str
    before: str
    after: str
    passed_before: bool
    passed_after: bool


@dataclass(frozen=True)
class CategoryCount:
    """Tests of a category, and how many passed."""

    total: int
    before: int
    after: int


@dataclass(frozen=True)
class CheckCount:
    """Numbers of a kept result, without its tests: enough for lists and comparisons."""

    name: str
    """Of the suite."""
    total: int
    before: int
    """Tests that passed before the training."""
    after: int
    """Tests that passed after it."""
    step: int | None = None
    """Optimizer steps that the model had been trained for; None if the file does not say."""
    p_value: float | None = None
    """As SuiteResult has it."""
    sha256: str = ""
    """Hash of the suite. Numbers of another hash are those of other tests."""

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self | None:
        """Return the numbers in a file of a run; None if they are missing or impossible."""
        declared = types_of(cls)
        try:
            found = {name: value_as(declared[name], fields[name]) for name in REQUIRED}
            for name in ("step", "p_value"):
                found[name] = value_as(declared[name], fields.get(name))
        except (KeyError, WrongType):
            return None
        found["name"] = found["name"][:MAX_NAME]
        count = cls(**found, sha256=str(fields.get("sha256") or ""))
        is_possible = 0 <= count.before <= count.total and 0 <= count.after <= count.total
        return count if is_possible and count.total else None


@dataclass(frozen=True)
class SuiteResult:
    """Outcomes of all tests of a suite."""

    name: str
    sha256: str
    """Hash of the suite."""
    step: int
    """Optimizer steps that the model had been trained for."""
    outcomes: tuple[Outcome, ...]

    @classmethod
    def of_answers(
        cls, suite: Suite, step: int, before: Sequence[str], after: Sequence[str]
    ) -> Self:
        """Judge the answers to a suite before and after a training."""
        judged = zip(
            suite.tests, before, after, judge(suite, before), judge(suite, after), strict=True
        )
        outcomes = []
        for test, answer_before, answer_after, was_right, is_right in judged:
            outcomes.append(
                Outcome(
                    prompt=test.prompt,
                    category=test.category,
                    expected=test.expected,
                    before=answer_before,
                    after=answer_after,
                    passed_before=was_right,
                    passed_after=is_right,
                )
            )
        return cls(suite.name, suite.sha256, step, tuple(outcomes))

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self | None:
        """Return the result in a file of a run; None if it is damaged."""
        try:
            outcomes = value_as(tuple[Outcome, ...], fields["tests"])
            step = value_as(int, fields["step"])
            return cls(str(fields["name"]), str(fields["sha256"]), step, outcomes)
        except (KeyError, WrongType):
            return None

    @property
    def total(self) -> int:
        return len(self.outcomes)

    @property
    def before(self) -> int:
        """Number of tests that passed before the training."""
        return sum(each.passed_before for each in self.outcomes)

    @property
    def after(self) -> int:
        """Number of tests that passed after it."""
        return sum(each.passed_after for each in self.outcomes)

    @property
    def lost(self) -> tuple[Outcome, ...]:
        """Tests that passed before the training only."""
        return tuple(each for each in self.outcomes if each.passed_before > each.passed_after)

    @property
    def gained(self) -> tuple[Outcome, ...]:
        """Tests that passed after the training only."""
        return tuple(each for each in self.outcomes if each.passed_after > each.passed_before)

    @property
    def p_value(self) -> float:
        """Chance of a change at least this uneven if the training had changed nothing."""
        return sign_test(len(self.lost), len(self.gained))

    @property
    def categories(self) -> Mapping[str, CategoryCount]:
        """Category -> its numbers, in the order of the suite. Tests without one are left out."""
        names = dict.fromkeys(each.category for each in self.outcomes if each.category)
        found = {}
        for name in names:
            own = [each for each in self.outcomes if each.category == name]
            num_before = sum(each.passed_before for each in own)
            num_after = sum(each.passed_after for each in own)
            found[name] = CategoryCount(len(own), num_before, num_after)
        return found

    def to_json(self) -> dict[str, object]:
        """Return the result as `check-model --json` prints it."""
        return {
            "name": self.name,
            "total": self.total,
            "before": self.before,
            "after": self.after,
            "lost": [_changed(each) for each in self.lost],
            "gained": [_changed(each) for each in self.gained],
            "p_value": self.p_value,
            "categories": {name: asdict(count) for name, count in self.categories.items()},
        }

    def to_file(self) -> dict[str, object]:
        """Return the result as the folder of a run keeps it."""
        tests = [asdict(each) for each in self.outcomes]
        return self.to_json() | {"sha256": self.sha256, "step": self.step, "tests": tests}


@dataclass(frozen=True)
class PerplexityResult:
    """Perplexity of the answers in held-out rows, and of as many rows that were trained on."""

    before: float | None = None
    after: float | None = None
    trained_rows: float | None = None
    """After the training, on rows of the training."""
    num_rows: int = 0
    """Held-out rows that were read."""

    @classmethod
    def from_json(cls, fields: object) -> Self | None:
        """Return it from JSON; None if it is damaged."""
        try:
            found: Self = value_as(cls, fields)
        except WrongType:
            return None
        return found

    def to_json(self) -> dict[str, float | None]:
        """Return it as `check-model --json` prints it."""
        return {"before": self.before, "after": self.after}


def _changed(outcome: Outcome) -> dict[str, str]:
    return {
        "prompt": outcome.prompt,
        "category": outcome.category,
        "expected": outcome.expected,
        "before": outcome.before,
        "after": outcome.after,
    }
