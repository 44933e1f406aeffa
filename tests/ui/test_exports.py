"""Test the panel that takes a result to other programs, as functions and by its downloads."""

import json
import time
from pathlib import Path

import gradio as gr
import pytest

from core.after_training.export import ExportStatus, launch, list_exports, tools
from core.after_training.export.forms import DEFAULT_QUANT, FormName
from core.after_training.export.ollama import add_to_ollama
from core.after_training.export.plan import ExportPlan
from core.after_training.export.records import ExportedFile, Manifest, Verification, exports_folder
from core.job import Problem, SpecError
from core.models import DEMO_DIR
from core.runs import Home, Run, read
from core.runs.checks import SuiteResult
from core.training.contract.checks.suite import Suite
from core.training.contract.checks.suite_files import parse_suite, to_lines
from core.training.contract.files import sha256_of, write_json
from core.wording import file_size
from tests.builders.fake_ollama import put_on_path
from tests.builders.fake_runs import bare_run
from ui.handlers.exports import ExportHandlers, show_exports
from ui.render import exports as panel
from ui.terminal import commands

FAKE_LLAMA = Path(__file__).parents[1] / "builders" / "fake_llama"
TRUSTED = Verification(True, 16, 16, 16, 0.004, 16, "llama.cpp", "16-bit base with adapter")
DOUBTFUL = Verification(False, 16, 3, 16, 0.4, 16, "llama.cpp", "result", "other <b>words</b>")


@pytest.fixture
def run(home: Home) -> Run:
    """Return a finished run with a result."""
    folder = bare_run(home, "made", model=str(DEMO_DIR), dataset="demo", method="full")
    output = folder / "output"
    output.mkdir()
    for path in DEMO_DIR.iterdir():
        (output / path.name).write_bytes(path.read_bytes())
    return read(home, "made")


def add_export(
    run: Run,
    name: str,
    verified: Verification | None,
    form: FormName = "gguf",
    content: bytes = b"GGUF",
) -> Path:
    """Write an export of one file."""
    folder = exports_folder(run) / name
    folder.mkdir(parents=True)
    (folder / "m.gguf").write_bytes(content)
    files = (ExportedFile("m.gguf", len(content), sha256_of(folder / "m.gguf")),)
    Manifest(form, "trained", "Q8_0", files, verified).write(folder)
    return folder


@pytest.mark.parametrize(
    ("num_bytes", "said"), [(300, "300 bytes"), (2048, "2 KiB"), (3 * 2**20, "3 MiB")]
)
def test_a_small_file_has_a_size_too(num_bytes: int, said: str) -> None:
    assert file_size(num_bytes) == said


def test_a_run_without_a_result_has_no_panel(home: Home) -> None:
    bare_run(home, "bare")
    updates = show_exports(read(home, "bare"), DEFAULT_QUANT, "trained")
    assert updates["take_panel"]["visible"] is False


def test_a_result_can_be_merged_at_once(run: Run) -> None:
    updates = show_exports(run, DEFAULT_QUANT, "trained")
    assert updates["take_panel"]["visible"] is True
    assert updates["export_merged"]["interactive"] is True
    assert "Use in Python" in updates["export_merged_tile"]


def test_what_is_missing_is_said_in_its_tile(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAILOR_EXPORT_TOOLS", "/nowhere")
    updates = show_exports(run, DEFAULT_QUANT, "trained")
    assert updates["export_gguf"]["interactive"] is False
    assert updates["install_tools"]["visible"] is True
    assert "is not installed" in updates["export_gguf_tile"]
    assert "Press Install the converters (88 MB)" in updates["export_gguf_tile"]
    assert "<code>TAILOR_LLAMA_CPP</code>" in updates["export_gguf_tile"]


def test_a_trusted_export_has_its_badge_and_lines(run: Run) -> None:
    folder = add_export(run, "gguf-Q8_0", TRUSTED)
    text = panel.exports(run.id, list_exports(run))
    assert '<span class="badge good">verified</span>' in text
    assert str(folder) in text
    assert "llama-server -m" in text
    assert 'href="export/made/gguf-Q8_0/m.gguf"' in text


def test_a_doubtful_export_says_why_and_escapes_it(run: Run) -> None:
    add_export(run, "gguf-Q8_0", DOUBTFUL)
    text = panel.exports(run.id, list_exports(run))
    assert "not to be trusted" in text
    assert "&lt;b&gt;words" in text


def test_a_damaged_manifest_is_not_listed(run: Run) -> None:
    (add_export(run, "gguf-Q8_0", None) / "export.json").write_text('{"form": 1')
    assert list_exports(run) == ()


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "m.gguf is not there any more"), (b"other", "m.gguf has changed since")],
)
def test_an_export_whose_weights_were_touched_is_not_trusted(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: bytes | None,
    said: str,
) -> None:
    put_on_path(tmp_path, monkeypatch)
    path = add_export(run, "ollama-Q8_0", TRUSTED, form="ollama") / "m.gguf"
    path.unlink()
    if content:
        path.write_bytes(content)
    (export,) = list_exports(run)
    assert '"trusted": false' in json.dumps(export.to_json())
    text = panel.exports(run.id, [export])
    assert '<span class="badge bad">damaged</span>' in text
    assert f"Not to be trusted: {said}" in text
    assert ("Download m.gguf" in text) == bool(content)
    with pytest.raises(SpecError, match=said):
        add_to_ollama(export)
    assert commands.run("export", home=str(run.home.path), run=run.id) == 0
    assert f"damaged: {said}" in " ".join(capsys.readouterr().out.split())


def test_an_export_of_another_version_is_listed(run: Run) -> None:
    folder = add_export(run, "gguf-Q8_0", TRUSTED)
    fields = json.loads((folder / "export.json").read_text())
    del fields["verified"]["program"], fields["seconds"]
    fields["verified"]["new"] = fields["files"][0]["new"] = 1
    write_json(folder / "export.json", fields)
    (export,) = list_exports(run)
    assert export.verified
    assert export.verified.trusted


def test_a_failure_is_said_with_what_to_do() -> None:
    failed = ExportStatus("failed", "Merging", 0.5, None, "The disk is full.", "free some space")
    assert "gguf: The disk is full. Free some space." in panel.status("gguf", failed, "log")


def test_progress_says_the_time_left() -> None:
    text = panel.status("gguf", ExportStatus("running", "Merging", 0.5, 90.0), "log")
    assert "Merging, about" in text
    assert 'aria-valuenow="50"' in text


def test_a_problem_takes_the_place_of_the_size() -> None:
    error = SpecError(Problem("base", "the base is gone", "put it back"))
    assert "The base is gone. Put it back." in panel.tile("T", "text", error)


def test_an_upload_needs_a_token_of_its_own(run: Run, home: Home) -> None:
    with pytest.raises(SpecError, match="token is missing"):
        ExportHandlers(home).on_publish(run.id, "me/model", "", True, "")


@pytest.mark.parametrize("verified", [TRUSTED, DOUBTFUL])
def test_the_terminal_says_how_to_use_what_can_be_trusted(
    run: Run,
    home: Home,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verified: Verification,
) -> None:
    add_export(run, "merged", verified, form="merged")
    monkeypatch.setattr(launch, "start", lambda *_: "merged")
    monkeypatch.setattr(launch, "wait", lambda *_: ExportStatus("finished"))
    code = commands.run("export", home=str(home.path), run=run.id, to="merged")
    assert code == (0 if verified.trusted else 1)
    assert ("    vllm serve " in capsys.readouterr().out) == verified.trusted


@pytest.mark.parametrize("is_ticked", [None, False, True])
def test_rows_are_sent_with_the_tick_alone(
    run: Run, home: Home, monkeypatch: pytest.MonkeyPatch, is_ticked: bool | None
) -> None:
    plans: list[ExportPlan] = []
    monkeypatch.setattr(launch, "start", lambda _run, plan, _token: plans.append(plan))
    (run.folder / "data").mkdir(exist_ok=True)
    (run.folder / "data" / "train.jsonl").write_text('{"text": "secret"}\n')
    ticks = {} if is_ticked is None else {"export_rows": is_ticked}
    updates = ExportHandlers(home).on_publish(run.id, "me/model", "token", True, "", **ticks)
    assert plans[0].request.with_data is bool(is_ticked)
    assert updates["export_rows"] is False


def test_a_card_is_written_from_the_run(run: Run, home: Home) -> None:
    updates = ExportHandlers(home).on_show_card(run.id, "me/model")
    assert "# model" in str(updates["export_card"])


def test_an_export_can_be_added_to_this_machines_ollama(
    run: Run, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = put_on_path(tmp_path, monkeypatch)
    assert show_exports(run, DEFAULT_QUANT, "trained")["add_to_ollama"]["visible"] is False
    add_export(run, "ollama-Q8_0", TRUSTED, form="ollama")
    assert show_exports(run, DEFAULT_QUANT, "trained")["add_to_ollama"]["visible"] is True
    updates = ExportHandlers(home).on_add_to_ollama(run.id, DEFAULT_QUANT, "trained")
    assert "ollama run made:q8_0" in updates["export_status"]
    assert calls.exists()


def test_without_ollama_nothing_is_offered(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    add_export(run, "ollama-Q8_0", TRUSTED, form="ollama")
    assert show_exports(run, DEFAULT_QUANT, "trained")["add_to_ollama"]["visible"] is False


def test_an_export_for_ollama_is_missing(run: Run, home: Home) -> None:
    with pytest.raises(SpecError, match="no export for Ollama yet"):
        ExportHandlers(home).on_add_to_ollama(run.id, DEFAULT_QUANT, "trained")


@pytest.mark.parametrize(
    ("form", "reason"), [("merged", "is for Ollama alone"), ("ollama", "not on the PATH")]
)
def test_create_needs_ollama_before_anything_is_made(
    form: str,
    reason: str,
    run: Run,
    home: Home,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert commands.run("export", home=str(home.path), run=run.id, to=form, create=True) == 2
    assert reason in capsys.readouterr().err
    assert not exports_folder(run).exists()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ({"quant": "Q8_0"}, "--to: is missing, which --quant needs"),
        ({"checks": True}, "--to: is missing, which --checks needs"),
        ({"to": "merged", "repo": "me/model"}, "--repo: has no use with --to merged"),
        ({"to": "gguf", "public": True}, "--public: has no use with --to gguf"),
        ({"to": "hub", "repo": "me/model", "quant": "Q8_0"}, "--quant: is for GGUF files"),
        ({"to": "ollama", "base": "both", "create": True}, "--create: has no use with --base both"),
    ],
)
def test_words_that_would_be_ignored_are_refused(
    words: dict[str, str | bool], reason: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert commands.run("export", home=str(run.home.path), run=run.id, **words) == 2
    assert reason in capsys.readouterr().err
    assert not exports_folder(run).exists()


def suite_of(run: Run) -> Suite:
    """Return the suite of one test, which the trained model has passed."""
    suite = parse_suite(b'{"prompt": "red", "exact": "red"}', "mine")
    folder = run.folder / "checks"
    (folder / "suites").mkdir(parents=True)
    (folder / "suites" / "mine.jsonl").write_text(to_lines(suite))
    result = SuiteResult.of_answers(suite, run.step, ["red"], ["red"])
    write_json(folder / "mine.json", result.to_file())
    return suite


def wait_for_the_end(handlers: ExportHandlers, run: Run) -> None:
    deadline = time.monotonic() + 30
    while handlers.activities.is_running(run.id) and time.monotonic() < deadline:
        time.sleep(0.05)


def test_an_export_is_checked_and_shows_what_it_cost(
    run: Run, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAILOR_EXPORT_TOOLS", str(FAKE_LLAMA))
    add_export(run, "gguf-Q8_0", TRUSTED, content=b"says <green>")
    suite_of(run)
    handlers = ExportHandlers(home)
    assert show_exports(run, DEFAULT_QUANT, "trained")["checked_export"]["choices"] == ["gguf-Q8_0"]
    updates = handlers.on_check_export(run.id, DEFAULT_QUANT, "trained", "gguf-Q8_0", ["mine"])
    assert updates["stop_export"]["visible"] is True
    assert updates["export_timer"]["active"] is True
    wait_for_the_end(handlers, run)
    updates = handlers.on_export_tick(run.id, DEFAULT_QUANT, "trained")
    assert updates["export_status"] == ""
    assert "1 of 1 as trained, 0 of 1 as Q8_0" in updates["exports"]
    assert "&lt;green&gt;" in updates["exports"]


def test_a_check_that_fails_says_why_on_the_page(
    run: Run, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAILOR_EXPORT_TOOLS", str(FAKE_LLAMA))
    (add_export(run, "gguf-Q8_0", TRUSTED) / "m.gguf").write_bytes(b"other")
    suite_of(run)
    handlers = ExportHandlers(home)
    handlers.on_check_export(run.id, DEFAULT_QUANT, "trained", "gguf-Q8_0", ["mine"])
    wait_for_the_end(handlers, run)
    updates = handlers.on_export_tick(run.id, DEFAULT_QUANT, "trained")
    assert "m.gguf has changed since it was exported" in updates["export_status"]


def test_nothing_to_check_is_said(run: Run, home: Home) -> None:
    with pytest.raises(SpecError, match="no export"):
        ExportHandlers(home).on_check_export(run.id, DEFAULT_QUANT, "trained", None, [])


def test_both_bases_need_a_base_of_4_bits(run: Run, home: Home) -> None:
    with pytest.raises(SpecError, match="over one base only"):
        ExportHandlers(home).on_export("merged", run.id, DEFAULT_QUANT, "both")


def test_installing_the_converters_shows_how_far_it_is(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(tools.FOLDER_VARIABLE, raising=False)
    unusable = tmp_path / "requirements.txt"
    unusable.write_text("no-hash==1\n")
    monkeypatch.setattr(tools, "REQUIREMENTS", unusable)
    page = ExportHandlers(run.home)
    updates = page.on_install_tools(run.id, DEFAULT_QUANT, "trained")
    assert 'role="progressbar"' in updates["export_status"]
    assert updates["export_timer"]["active"] is True
    wait_for_the_end(page, run)
    updates = page.on_export_tick(run.id, DEFAULT_QUANT, "trained")
    assert "The converters cannot be installed" in updates["export_status"]
    assert updates["install_tools"] == gr.update(visible=True, interactive=True)
