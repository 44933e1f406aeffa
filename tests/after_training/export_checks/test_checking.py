"""Check of exports: what is asked, compared and kept, and what is refused. A package stands for
llama.cpp: it answers with the words of the prompt."""

import json
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from filelock import FileLock

from core.after_training.export import list_exports
from core.after_training.export.card import new_card
from core.after_training.export.records import exports_folder
from core.after_training.export.tools import FOLDER_VARIABLE
from core.after_training.export_checks import (
    check_export,
    find_export,
    find_exported,
    names_export,
)
from core.after_training.export_checks.sentences import check_sentences
from core.job import ChildError, SpecError
from core.runs import Home, Run, read
from core.runs.checks import SuiteResult
from core.runs.results import checking
from core.training.contract.checks.suite import Suite
from core.training.contract.checks.suite_files import parse_suite
from core.training.contract.files import write_json
from tests.builders.chat_runs import add_gguf, finish
from tests.builders.fake_runs import NewRun
from ui.terminal import commands

FAKE_LLAMA = Path(__file__).parents[2] / "builders" / "fake_llama"
NAME = "gguf-Q8_0"


@pytest.fixture
def run(new_run: NewRun, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a finished run with an export, on a machine with llama.cpp."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(FAKE_LLAMA))
    made = finish(new_run(model="demo", dataset="demo"))
    (made.folder / "output" / "chat_template.jinja").write_text("{{ messages }}")
    add_gguf(made)
    return made


def suite_of(*tests: dict[str, object], name: str = "mine") -> Suite:
    lines = "\n".join(json.dumps(test) for test in tests)
    return parse_suite(lines.encode(), name)


def answered(run: Run, suite: Suite, answers: Sequence[str]) -> Suite:
    """Keep what the trained model has answered to a suite."""
    step = run.result_step or run.step
    result = SuiteResult.of_answers(suite, step, answers, answers)
    (run.folder / "checks").mkdir(exist_ok=True)
    write_json(run.folder / "checks" / f"{suite.name}.json", result.to_file())
    return suite


COLOURS = suite_of({"prompt": "red", "exact": "red"}, {"prompt": "green", "exact": "blue"})


def test_an_export_is_compared_with_the_model_as_trained(run: Run) -> None:
    suite = answered(run, COLOURS, ["red", "blue"])
    shares: list[float] = []
    report = check_export(run, find_export(run, NAME), [suite], on_progress=shares.append)
    (result,) = report.suites
    assert (result.before, result.after, result.total) == (2, 1, 2)
    assert [(each.before, each.after) for each in result.lost] == [("blue", "green")]
    assert shares == sorted(shares)
    (export,) = list_exports(run)
    assert export.checks == report.suites
    numbers, change = check_sentences(result, export.manifest)
    assert numbers.startswith("mine: 2 of 2 as trained, 1 of 2 as Q8_0")
    assert change == "0 gained, 1 lost: this can be chance (p = 1)."


def test_choices_are_compared_by_their_likelihood(run: Run) -> None:
    choice = ["long way round", "short"]
    suite = suite_of({"prompt": "which", "choice": choice, "answer": "short"})
    report = check_export(run, find_export(run, NAME), [answered(run, suite, ["short"])])
    assert report.suites[0].outcomes[0].after == "short"


def test_a_test_that_the_template_refuses_is_named(run: Run) -> None:
    suite = answered(run, suite_of({"prompt": "refused", "exact": "x"}), ["x"])
    with pytest.raises(ChildError, match=r"suite mine, line 1, m.gguf \(roles must alternate\)"):
        check_export(run, find_export(run, NAME), [suite])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"other", "m.gguf has changed since it was exported; export it again"),
        (None, "m.gguf is not there any more; export it again"),
    ],
    ids=["changed", "gone"],
)
def test_a_damaged_file_is_said(run: Run, content: bytes | None, said: str) -> None:
    suite = answered(run, COLOURS, ["red", "blue"])
    export = find_export(run, NAME)
    file = export.folder / "m.gguf"
    file.unlink()
    if content:
        file.write_bytes(content)
    with pytest.raises(ChildError, match=said):
        check_export(run, export, [suite])
    assert export.checks == ()


def test_a_file_that_llama_cpp_cannot_read_is_said(run: Run) -> None:
    add_gguf(run, "gguf-Q4_0", "broken")
    suite = answered(run, COLOURS, ["red", "blue"])
    with pytest.raises(ChildError, match="cannot read m"):
        check_export(run, find_export(run, "gguf-Q4_0"), [suite])


def test_a_server_that_dies_is_said(run: Run) -> None:
    suite = answered(run, suite_of({"prompt": "die", "exact": "x"}), ["x"])
    with pytest.raises(ChildError, match="signal 9"):
        check_export(run, find_export(run, NAME), [suite])


def test_a_check_can_be_stopped(run: Run) -> None:
    suite = answered(run, suite_of({"prompt": "wait", "exact": "x"}), ["x"])
    is_stopped = threading.Event()
    with pytest.raises(ChildError, match="cancelled"):
        check_export(
            run,
            find_export(run, NAME),
            [suite],
            on_progress=lambda _share: is_stopped.set(),
            is_cancelled=is_stopped.is_set,
        )
    with FileLock(exports_folder(run) / ".check.lock", timeout=0):
        assert list_exports(run)[0].checks == ()


def test_an_export_that_is_deleted_meanwhile_keeps_nothing(run: Run) -> None:
    suite = answered(run, COLOURS, ["red", "blue"])
    folder = find_export(run, NAME).folder

    def delete(share: float) -> None:
        if share == 1:
            shutil.rmtree(folder)

    with pytest.raises(SpecError, match="was deleted or made again"):
        check_export(run, find_export(run, NAME), [suite], on_progress=delete)
    assert not folder.exists()


def test_a_second_check_at_the_same_time_is_refused(run: Run) -> None:
    with (
        FileLock(exports_folder(run) / ".check.lock"),
        pytest.raises(SpecError, match="another check"),
    ):
        check_export(run, find_export(run, NAME), [COLOURS])


def test_a_machine_without_llama_cpp_says_what_to_install(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, "/nowhere")
    with pytest.raises(SpecError, match="make export"):
        check_export(run, find_export(run, NAME), [COLOURS])


def test_suites_that_were_not_asked_are_asked_of_the_result_first(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def check(_run: Run, suites: Sequence[Suite], **_more: object) -> checking.CheckReport:
        asked.extend(suite.name for suite in suites)
        answered(run, COLOURS, ["red", "blue"])
        return checking.CheckReport(run.id, checking.results_of(run), checking.PerplexityResult())

    monkeypatch.setattr(checking, "check", check)
    check_export(run, find_export(run, NAME), [COLOURS])
    check_export(run, find_export(run, NAME), [COLOURS])
    assert asked == ["mine"]


def test_an_export_is_named_behind_its_run(run: Run, home: Home) -> None:
    assert names_export(f"{run.id}@{NAME}")
    assert not names_export(f"{run.id}@40")
    found, export = find_exported(home, f"{run.id}@{NAME}")
    assert (found.id, export.name) == (run.id, NAME)
    with pytest.raises(SpecError, match=f"choose {run.id}@{NAME}"):
        find_exported(home, f"{run.id}@gguf-Q9")


def test_an_adapter_alone_is_not_checked(run: Run) -> None:
    add_gguf(run, "adapter-gguf")
    with pytest.raises(SpecError, match="no export adapter-gguf to check"):
        find_export(run, "adapter-gguf")


def test_the_command_says_what_an_export_cost(
    run: Run, home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answered(run, COLOURS, ["red", "blue"])
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(json.dumps(test.fields) for test in COLOURS.tests))
    words = {"run": f"{run.id}@{NAME}", "suite": [str(path)], "home": str(home.path)}
    assert commands.run("check-model", **words) == 0
    assert "2 of 2 as trained, 1 of 2 as Q8_0" in capsys.readouterr().out
    assert commands.run("check-model", **words, at_least="mine=2") == 1
    assert commands.run("export", run=run.id, home=str(home.path)) == 0
    assert "mine 1/2 (2 as trained)" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["hub", "adapter-gguf"])
def test_forms_that_answer_no_suites_are_refused(
    run: Run, home: Home, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {"run": run.id, "to": form, "home": str(home.path)}
    assert commands.run("export", **words, checks=True) == 2
    assert "--checks: has no use" in capsys.readouterr().err


def test_the_card_of_an_upload_says_what_its_kind_passed(run: Run) -> None:
    check_export(run, find_export(run, NAME), [answered(run, COLOURS, ["red", "blue"])])
    said = "Q8_0, over the base as it trained: mine 2 of 2 as trained, 1 as exported."
    again = read(run.home, run.id)
    assert said in new_card(again, "me/model", "gguf")
    assert said not in new_card(again, "me/model", "adapter")
