"""Command `check-model` and the panel Check: output, exit codes, start, stop and faults."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from core.runs import Home, Run, read
from core.runs.results import checking
from core.training.contract.files import write_json
from tests.builders.chat_runs import add_checkpoint
from tests.builders.fake_checks import PERPLEXITY, WAIT
from tests.builders.fake_runs import bare_run
from ui.handlers import Handlers

Tailor = Callable[..., int]
Printed = pytest.CaptureFixture[str]
CHANGED_KEYS = {"prompt", "category", "expected", "before", "after"}
PASSED, MISSED, REFUSED = 0, 1, 2
SECONDS = 20


@pytest.fixture(autouse=True)
def _quick_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "MODULE", "tests.builders.fake_checks")


@pytest.fixture
def run(home: Home) -> Run:
    """Return a run with a result, and with a suite of its own: `mine` passes 1, then 2 of 3."""
    folder = bare_run(home, "a-run")
    (folder / "output").mkdir()
    write_json(folder / "output" / "manifest.json", {"step": 12})
    suites = folder / "checks" / "suites"
    suites.mkdir(parents=True)
    write_suite(suites / "mine.jsonl", "before", "after", "after too")
    return read(home, "a-run")


def write_suite(path: Path, *prompts: str) -> None:
    lines = (
        json.dumps({"prompt": prompt, "exact": "yes", "category": "c"}) + "\n" for prompt in prompts
    )
    path.write_text("".join(lines), encoding="utf-8")


def test_json_has_exactly_the_keys_of_the_contract(
    tailor: Tailor, run: Run, capsys: Printed
) -> None:
    assert tailor("check-model", run.id, "--suite", "mine", "--json") == PASSED
    printed = json.loads(capsys.readouterr().out)
    assert printed.keys() == {"run", "suites", "perplexity"}
    assert printed["run"] == run.id
    assert printed["perplexity"] == {name: PERPLEXITY[name] for name in ("before", "after")}
    (suite,) = printed["suites"]
    assert suite["lost"][0].keys() == suite["gained"][0].keys() == CHANGED_KEYS
    assert [each["prompt"] for each in suite["gained"]] == ["after", "after too"]
    numbers = {name: suite[name] for name in suite.keys() - {"lost", "gained"}}
    assert numbers == {
        "name": "mine",
        "total": 3,
        "before": 1,
        "after": 2,
        "p_value": 1.0,
        "categories": {"c": {"total": 3, "before": 1, "after": 2}},
    }


def test_without_a_name_the_usual_suites_run(tailor: Tailor, run: Run, capsys: Printed) -> None:
    assert tailor("check-model", run.id, "--json") == PASSED
    printed = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in printed["suites"]] == ["identity", "capabilities"]


@pytest.mark.parametrize(
    ("threshold", "code"),
    [("mine=2", PASSED), ("mine=3", MISSED), ("other=1", REFUSED), ("mine", REFUSED)],
)
def test_a_missed_threshold_is_the_exit_code(
    tailor: Tailor, run: Run, capsys: Printed, threshold: str, code: int
) -> None:
    asked = ("check-model", run.id, "--suite", "mine", "--at-least", threshold)
    assert tailor(*asked) == code
    said = capsys.readouterr().err
    assert bool(said) == bool(code)
    assert ("mine: 2 of 3 passed, 3 were asked for." in said) == (code == MISSED)


def test_the_terminal_lists_what_changed(tailor: Tailor, run: Run, capsys: Printed) -> None:
    assert tailor("check-model", run.id, "--suite", "mine") == PASSED
    said = capsys.readouterr().out
    assert "mine: 1 of 3 before, 2 of 3 after" in said
    assert "lost" in said
    assert "after too" in said
    assert tailor("runs", "list") == PASSED
    assert "mine 2/3" in capsys.readouterr().out


def test_a_faulty_suite_names_its_lines(
    tailor: Tailor, run: Run, tmp_path: Path, capsys: Printed
) -> None:
    path = tmp_path / "faulty.jsonl"
    path.write_text('{"prompt": "a", "exact": "b"}\n{"prompt": "a"}\n', encoding="utf-8")
    assert tailor("check-model", run.id, "--suite", str(path)) == REFUSED
    assert "faulty line 2" in capsys.readouterr().err


def test_the_panel_asks_the_chosen_suites_and_shows_what_changed(
    handlers: Handlers, run: Run
) -> None:
    panel = handlers.checks
    assert "Choose a suite" in str(panel.on_check(run.id, [])["check_status"])
    assert "Asking the model" in str(panel.on_check(run.id, ["mine"])["check_status"])
    shown = _until(lambda: panel.on_check_tick(run.id), lambda shown: shown["check_status"] == "")
    assert "2 of 3 after" in str(shown["check_results"])
    assert "Gained: 2" in str(shown["check_results"])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--lm-eval", "tasks", "--at-least", "mine=3"), "--at-least: has no use beside --lm-eval"),
        (("--lm-eval", "tasks", "--suite", "mine"), "--suite: has no use beside --lm-eval"),
        (("--write-tasks", "x", "--at-least", "mine=3"), "--at-least: has no use beside --write"),
    ],
)
def test_a_flag_without_use_is_refused(
    tailor: Tailor, run: Run, capsys: Printed, flags: tuple[str, ...], said: str
) -> None:
    assert tailor("check-model", run.id, *flags) == REFUSED
    assert said in capsys.readouterr().err


def test_the_panel_asks_the_result_unless_a_checkpoint_is_chosen(
    handlers: Handlers, run: Run
) -> None:
    add_checkpoint(run, 8)
    panel = handlers.checks
    choice = panel.show_panel(run, is_new=True)["check_what"]
    assert [value for _label, value in choice["choices"]] == ["result", "8"]
    for value, kept in (("result", "mine.json"), ("8", "step-8/mine.json")):
        panel.on_check(run.id, ["mine"], value)
        _until(lambda: panel.on_check_tick(run.id), lambda shown: shown["check_status"] == "")
        assert (run.folder / "checks" / kept).is_file()


def test_a_run_that_ends_while_it_is_watched_can_be_checked(handlers: Handlers, run: Run) -> None:
    panel = handlers.checks
    training = replace(run, state="running")
    shown = panel.show_panel(training, is_new=True)
    assert shown["check_panel"]["visible"] is False
    assert "mine" in shown["suites_chosen"]["choices"]
    assert shown["check_what"]["value"] == "result"
    ended = panel.show_panel(run, is_new=False)
    assert ended["check_panel"]["visible"] is True
    assert ended["check_what"]["choices"] == [("The result", "result")]
    assert "suites_chosen" not in ended  # what was ticked stays


def test_the_panel_makes_a_suite_of_three_answers(handlers: Handlers, run: Run) -> None:
    shown = handlers.checks.on_make_identity(run.id, "Pip", "Madam Hem", "")
    assert "identity: " in str(shown["identity_status"])
    assert "identity" in checking.suites_of(run)
    assert (run.folder / "checks" / "suites" / "identity.jsonl").is_file()


def test_the_panel_stops_a_check_and_keeps_earlier_results(handlers: Handlers, run: Run) -> None:
    panel = handlers.checks
    panel.on_check(run.id, ["mine"])
    _until(lambda: panel.on_check_tick(run.id), lambda shown: shown["check_status"] == "")
    write_suite(run.folder / "checks" / "suites" / "slow.jsonl", WAIT)
    panel.on_check(run.id, ["slow"])
    panel.on_stop_check(run.id)
    shown = _until(lambda: panel.on_check_tick(run.id), lambda shown: shown["check_status"] == "")
    assert "2 of 3 after" in str(shown["check_results"])


def test_results_of_another_checkpoint_are_marked(handlers: Handlers, run: Run) -> None:
    panel = handlers.checks
    panel.on_check(run.id, ["mine"])
    _until(lambda: panel.on_check_tick(run.id), lambda shown: shown["check_status"] == "")
    write_json(run.folder / "output" / "manifest.json", {"step": 6})
    shown = str(panel.on_check_tick(run.id)["check_results"])
    assert "The result is that of step 6 now. It has not answered: mine." in shown


def _until(
    read: Callable[[], Mapping[str, object]], holds: Callable[[Mapping[str, object]], bool]
) -> Mapping[str, object]:
    """Return what is shown once a condition holds, or when the time is over."""
    deadline = time.monotonic() + SECONDS
    shown = read()
    while not holds(shown) and time.monotonic() < deadline:
        time.sleep(0.02)
        shown = read()
    return shown
