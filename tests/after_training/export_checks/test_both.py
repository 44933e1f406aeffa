"""Measure an export over both bases: which is recommended, and what stays on a full disk. A package
stands for llama.cpp, and what exports writes a file that says what its model answers."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from core.after_training.export import ExportStatus, launch, list_exports
from core.after_training.export.plan import ExportPlan
from core.after_training.export.records import Manifest, Verification
from core.after_training.export.tools import FOLDER_VARIABLE
from core.after_training.export_checks import Numbers, measure_both, measured_both
from core.after_training.export_checks.sentences import both_sentences
from core.job import ChildError, SpecError
from core.runs import Home, Run
from core.runs.checks import SuiteResult
from core.runs.results import checking
from core.training.contract.checks.suite import Suite
from core.training.contract.checks.suite_files import parse_suite
from core.training.contract.files import write_json
from tests.builders.chat_runs import add_gguf, finish
from tests.builders.fake_runs import NewRun
from ui.terminal import commands

FAKE_LLAMA = Path(__file__).parents[2] / "builders" / "fake_llama"
TRAINED, ORIGINAL = "gguf-Q8_0", "gguf-Q8_0-original-base"
MANY = 8
"""Tests that must change in one direction, so that this is hardly chance."""
ENOUGH = 10**12
MakeRun = Callable[..., Run]
TRUSTED = Verification(True, 16, 16, 16, 0.004)
DOUBTFUL = Verification(False, 16, 3, 16, 0.4, note="other probabilities")


@pytest.fixture
def make_run(new_run: NewRun, monkeypatch: pytest.MonkeyPatch) -> MakeRun:
    """Return a function that makes a run whose exports over each base answer as said."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(FAKE_LLAMA))
    monkeypatch.setattr("core.after_training.export.plan._tool_problems", lambda *_: [])

    def make(trained: str, original: str, num_tests: int = MANY) -> Run:
        run = finish(new_run(model="demo", dataset="demo", method="qlora"))
        says = {TRAINED: f"says {trained}", ORIGINAL: f"says {original}"}

        def start(run: Run, plan: ExportPlan) -> str:
            name = plan.request.name
            shutil.rmtree(run.folder / "exports" / name, ignore_errors=True)
            add_gguf(run, name, says[name])
            return name

        monkeypatch.setattr(launch, "start", start)
        suite = suite_of(num_tests)
        result = SuiteResult.of_answers(suite, run.step, ["yes"] * num_tests, ["yes"] * num_tests)
        (run.folder / "checks").mkdir()
        write_json(run.folder / "checks" / "mine.json", result.to_file())
        return run

    return make


def suite_of(num_tests: int) -> Suite:
    lines = [json.dumps({"prompt": f"say {number}", "exact": "yes"}) for number in range(num_tests)]
    return parse_suite("\n".join(lines).encode(), "mine")


def ignore(_text: str, _share: float) -> None:
    """Do nothing with the progress."""


def measure(run: Run, num_tests: int = MANY) -> Sequence[str]:
    """Measure both bases, and return the sentences about them."""
    both = measure_both(run, "gguf", [suite_of(num_tests)], ignore, numbers=Numbers("Q8_0"))
    assert measured_both(run) == (both,)
    return tuple(both_sentences(both))


def test_no_difference_recommends_the_base_as_it_trained(make_run: MakeRun) -> None:
    run = make_run("yes", "yes")
    numbers, recommended = measure(run)
    assert "8 of 8 over the base as it trained, 8 of 8 over the 16-bit base" in numbers
    assert recommended.startswith(f"Recommended: {TRAINED}, over the base as it trained")
    assert "no difference beyond chance" in recommended
    assert [each.name for each in list_exports(run)] == [TRAINED, ORIGINAL]


def test_a_base_that_passes_more_by_chance_is_not_recommended(make_run: MakeRun) -> None:
    (_numbers, recommended) = measure(make_run("no", "yes", 3), 3)
    assert f"Recommended: {TRAINED}," in recommended
    assert "no difference beyond chance, p = 0.25" in recommended


def test_a_base_that_passes_more_beyond_chance_is_recommended(make_run: MakeRun) -> None:
    (_numbers, recommended) = measure(make_run("no", "yes"))
    assert f"Recommended: {ORIGINAL}, over the 16-bit base" in recommended
    assert "a difference beyond chance, p = 0.0078" in recommended


@pytest.mark.parametrize(
    ("original", "stays"), [("yes", ORIGINAL), ("no", TRAINED)], ids=["better", "equal"]
)
def test_a_disk_with_room_for_one_keeps_the_recommended(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, original: str, stays: str
) -> None:
    run = make_run("no", original)

    def usage(path: Path) -> object:
        free = 0 if list_exports(run) else ENOUGH
        return real_usage(path)._replace(free=free)

    real_usage = shutil.disk_usage
    monkeypatch.setattr("core.after_training.export.plan.shutil.disk_usage", usage)
    measure(run)
    (export,) = list_exports(run)
    assert export.name == stays
    assert [each.name for each in export.checks] == ["mine"]


def test_an_export_that_fails_says_why(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run("yes", "yes")
    failed = ExportStatus("failed", error="The disk is full.", fix="free some space")
    monkeypatch.setattr(launch, "wait", lambda *_: failed)
    with pytest.raises(SpecError, match="gguf-Q8_0: The disk is full; free some space"):
        measure_both(run, "gguf", [suite_of(1)], ignore, numbers=Numbers("Q8_0"))
    assert measured_both(run) == ()


def test_a_measurement_can_be_stopped(make_run: MakeRun) -> None:
    run = make_run("yes", "yes")
    with pytest.raises(ChildError, match="cancelled"):
        measure_both(
            run,
            "gguf",
            [suite_of(MANY)],
            ignore,
            numbers=Numbers("Q8_0"),
            is_cancelled=lambda: True,
        )


@pytest.mark.parametrize(("are_both", "untrusted"), [(True, ()), (False, ("original",))])
def test_a_record_of_an_earlier_version_is_read(
    make_run: MakeRun, are_both: bool, untrusted: tuple[str, ...]
) -> None:
    run = make_run("yes", "yes")
    measure(run)
    file = run.folder / "exports" / "both-gguf-Q8_0.json"
    fields = json.loads(file.read_text())
    del fields["untrusted"]
    file.write_text(json.dumps(fields | {"are_both_trusted": are_both}))
    (both,) = measured_both(run)
    assert both.untrusted == untrusted


@pytest.mark.parametrize("content", ["", "{}", '{"results": 1}', '{"form": "gguf"}'])
def test_a_damaged_record_is_passed_over(make_run: MakeRun, content: str) -> None:
    run = make_run("yes", "yes")
    (run.folder / "exports").mkdir()
    (run.folder / "exports" / "both-gguf-Q8_0.json").write_text(content)
    assert measured_both(run) == ()


@pytest.mark.parametrize(
    ("method", "form", "said"),
    [("lora", "gguf", "over one base only"), ("qlora", "hub", "cannot be measured")],
)
def test_what_cannot_be_measured_is_said(
    new_run: NewRun, home: Home, method: str, form: str, said: str, capsys
) -> None:
    run = finish(new_run(model="demo", dataset="demo", method=method))
    words = {"run": run.id, "to": form, "base": "both", "home": str(home.path)}
    assert commands.run("export", **words) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("trained", "original", "code", "said"),
    [
        (TRUSTED, TRUSTED, 0, f"Recommended: {TRAINED},"),
        (DOUBTFUL, TRUSTED, 1, f"Recommended: {ORIGINAL}, over the 16-bit base ({TRAINED} is not"),
        (TRUSTED, DOUBTFUL, 1, f"Recommended: {TRAINED}, over the base as it trained ({ORIGINAL}"),
        (DOUBTFUL, DOUBTFUL, 1, f"none is recommended: {TRAINED} and {ORIGINAL}."),
    ],
    ids=["both trusted", "trained doubtful", "original doubtful", "neither"],
)
def test_an_export_that_is_not_to_be_trusted_fails_the_command(
    make_run: MakeRun,
    home: Home,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    trained: Verification,
    original: Verification,
    code: int,
    said: str,
) -> None:
    run = make_run("yes", "yes")
    monkeypatch.setattr(checking, "find_suites", lambda *_: (suite_of(MANY),))
    start, verified = launch.start, {TRAINED: trained, ORIGINAL: original}

    def start_verified(run: Run, plan: ExportPlan) -> str:
        name = start(run, plan)
        folder = run.folder / "exports" / name
        replace(Manifest.read(folder), verified=verified[name]).write(folder)
        return name

    monkeypatch.setattr(launch, "start", start_verified)
    words = {"run": run.id, "to": "gguf", "quant": "Q8_0", "base": "both", "home": str(home.path)}
    assert commands.run("export", **words) == code
    printed = " ".join(capsys.readouterr().out.split())
    assert said in printed
    assert printed.count("Not to be trusted: other probabilities") == [
        trained.trusted,
        original.trusted,
    ].count(False)
    assert commands.run("export", **words, json=True) == code
    found = json.loads(capsys.readouterr().out)
    assert (found["recommended"] is None) == (trained == original == DOUBTFUL)
