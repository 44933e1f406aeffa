"""Test uploads against a Hub on this machine, as the real client speaks to it."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from core.after_training.export import launch
from core.after_training.export.card import keep_card, new_card
from core.after_training.export.loss_plot import loss_plot
from core.after_training.export.plan import Upload, plan_export
from core.after_training.export.records import unfinished_folder
from core.job import SpecError
from core.runs import Home, Run, read
from core.training.contract.files import write_json
from tests.builders.exports import AdapterCase, make_case
from tests.builders.fake_hub_uploads import TOKEN, Received, upload_hub
from tests.builders.fake_runs import FINISHED

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("ignore")]
ID = "made"
POLYLINE = "{http://www.w3.org/2000/svg}polyline"
UPLOAD = Upload("me/model")
TRAIN, EVAL = b'{"text": "a secret row"}\n', b'{"text": "another"}\n'
NOT_SENT = "The rows are not part of this repository."
SENT = "The rows are in `data/train.jsonl` and `data/eval.jsonl`."


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a base, and a run with an adapter over it."""
    folder = tmp_path_factory.mktemp("case")
    make_case(folder, AdapterCase())
    write_json(folder / "run" / "status.json", FINISHED)
    (folder / "run" / "output" / "training_args.bin").write_bytes(b"pickle")
    (folder / "base" / "NOTICE").write_text("Built with care.")
    return folder


@pytest.fixture
def run(made: Path, home: Home) -> Run:
    """Return the run in a home of the test."""
    shutil.copytree(made / "run", home.runs / ID)
    return read(home, ID)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Received]:
    """Serve a Hub, which the worker finds by its environment."""
    with upload_hub() as received:
        monkeypatch.setenv("HF_ENDPOINT", received.url)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        yield received


def send(run: Run, token: str = TOKEN, upload: Upload = UPLOAD) -> str:
    """Send a run's result; return the error, "" for none."""
    name = launch.start(run, plan_export(run, "hub", upload=upload), token)
    return launch.wait(run, name, lambda _status: None).error


def test_an_adapter_is_sent_privately_without_paths(run: Run, hub: Received) -> None:
    assert send(run) == ""
    assert hub.repositories[0]["visibility"] == "private"
    assert set(hub.files) >= {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert "training_args.bin" not in hub.files
    assert hub.files["NOTICE"] == b"Built with care."
    assert b"TokenizersBackend" not in hub.files["tokenizer_config.json"]
    texts = b"".join(text for name, text in hub.files.items() if name.endswith((".json", ".md")))
    assert str(run.folder).encode() not in texts
    assert run.job.model.encode() not in texts
    found = launch.result_of(run, "hub")
    assert found.manifest.url == f"{hub.url}/me/model"


def test_nothing_private_is_sent_to_a_public_repository(run: Run, hub: Received) -> None:
    hub.is_private = False
    assert send(run).startswith("It is not sent: me/model is there already, and everybody can")
    assert hub.files == {}
    assert send(run, upload=replace(UPLOAD, is_private=False)) == ""


def test_rows_are_sent_where_that_is_asked_for(run: Run, hub: Received) -> None:
    keep_card(run, f"# Mine\n\n{NOT_SENT}\n")
    write_data(run)
    plan = plan_export(run, "hub", upload=replace(UPLOAD, with_data=True, is_private=False))
    assert plan.notes == ("The rows of the training are sent too: everybody can read them.",)
    assert send(run, upload=replace(UPLOAD, with_data=True)) == ""
    assert hub.files["data/train.jsonl"] == TRAIN
    assert hub.files["data/eval.jsonl"] == EVAL
    assert SENT in hub.files["README.md"].decode()
    assert NOT_SENT not in hub.files["README.md"].decode()
    names = {each.name for each in launch.result_of(run, "hub").manifest.files}
    assert names >= {"data/train.jsonl", "data/eval.jsonl"}


def test_rows_are_never_sent_without_being_asked_for(run: Run, hub: Received) -> None:
    keep_card(run, f"# Mine\n\n{SENT}\n")
    write_data(run)
    assert send(run) == ""
    assert [name for name in hub.files if name.startswith("data")] == []
    assert NOT_SENT in hub.files["README.md"].decode()
    sent = b"".join([*hub.files.values(), *hub.large.values()])
    assert b"a secret row" not in sent


def test_rows_of_an_earlier_upload_are_deleted_without_the_tick(run: Run, hub: Received) -> None:
    write_data(run)
    assert send(run, upload=replace(UPLOAD, with_data=True)) == ""
    assert send(run) == ""
    assert [name for name in hub.files if name.startswith("data")] == []
    notes = launch.result_of(run, "hub").manifest.notes
    assert notes[-1].startswith("Deleted from me/model: data/train.jsonl, data/eval.jsonl, which")
    assert "The history of the repository still has them" in notes[-1]


def test_rows_of_another_upload_stay_and_are_named(run: Run, hub: Received) -> None:
    write_data(run)
    hub.files["data/train.jsonl"] = b"of another"
    assert send(run) == ""
    assert hub.files["data/train.jsonl"] == b"of another"
    notes = launch.result_of(run, "hub").manifest.notes
    assert notes[-1].startswith("me/model still has data/train.jsonl, of another upload: delete")


def test_an_upload_without_rows_before_says_nothing_of_rows(run: Run, hub: Received) -> None:
    assert send(run) == ""
    notes = launch.result_of(run, "hub").manifest.notes
    assert [note for note in notes if "data/" in note] == []


def test_rows_that_are_gone_cannot_be_sent(run: Run) -> None:
    with pytest.raises(SpecError, match="rows of the run are not there any more"):
        plan_export(run, "hub", upload=replace(UPLOAD, with_data=True))


def write_data(run: Run) -> None:
    (run.folder / "data").mkdir(exist_ok=True)
    (run.folder / "data" / "train.jsonl").write_bytes(TRAIN)
    (run.folder / "data" / "eval.jsonl").write_bytes(EVAL)


@pytest.mark.slow
def test_the_plot_of_the_losses_is_sent_with_the_card(run: Run, hub: Received) -> None:
    write_losses(run)
    assert send(run) == ""
    assert hub.files["loss.svg"].startswith(b"<svg ")


@pytest.mark.slow
def test_a_wrong_token_is_said_and_kept_nowhere(run: Run, hub: Received) -> None:
    secret = "hf_wrong_secret"
    assert "the token is missing or wrong" in send(run, secret)
    folder = unfinished_folder(run, "hub")
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert [path for path in files if secret.encode() in path.read_bytes()] == []


@pytest.mark.slow
def test_a_second_upload_sends_no_large_file_again(run: Run, hub: Received) -> None:
    assert send(run) == ""
    assert send(run) == ""
    assert hub.num_puts == 1


@pytest.mark.slow
def test_an_edited_card_is_the_one_that_is_sent(run: Run, hub: Received) -> None:
    keep_card(run, "---\ntags: []\n---\n# Mine\n")
    assert send(run) == ""
    assert hub.files["README.md"].endswith(b"# Mine\n")


def test_a_repository_must_be_named(run: Run) -> None:
    with pytest.raises(SpecError, match="is missing"):
        plan_export(run, "hub")
    with pytest.raises(SpecError, match="is no repository"):
        plan_export(run, "hub", upload=Upload("no owner"))


def test_a_card_says_what_is_known(run: Run) -> None:
    (run.folder / "checks").mkdir()
    check = {"name": "identity", "total": 100, "before": 3, "after": 98}
    (run.folder / "checks" / "identity.json").write_text(json.dumps(check))
    card = new_card(read(run.home, run.id), "me/model", "adapter")
    assert "library_name: peft" in card
    assert "| identity | 100 | 3 of 100 | 98 of 100 | 93% to 99% | gained |" in card
    assert "What the numbers do not say" in card
    assert "20 steps" in card
    assert str(run.folder.parent) not in card


def write_losses(run: Run) -> None:
    """Write three logged steps."""
    rows = [{"step": step, "loss": 3 / step, "eval_loss": 4 / step} for step in (1, 2, 3)]
    lines = [json.dumps(row) for row in rows]
    (run.folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def test_a_card_shows_the_losses(run: Run) -> None:
    write_losses(run)
    known = read(run.home, run.id)
    card = new_card(known, "me/model", "adapter")
    assert "](loss.svg)" in card
    assert "training (blue), evaluation (red)" in card
    plot = ElementTree.fromstring(loss_plot(known))
    assert [len(line.get("points", "").split()) for line in plot.iter(POLYLINE)] == [3, 3]


@pytest.mark.parametrize("metrics", ["", '{"step": 1, "loss": NaN}\n{"step": 2, "loss": NaN}\n'])
def test_a_card_without_finite_losses_has_no_plot(run: Run, metrics: str) -> None:
    (run.folder / "metrics.jsonl").write_text(metrics)
    known = read(run.home, run.id)
    assert "loss.svg" not in new_card(known, "me/model", "adapter")
    assert loss_plot(known) == ""
