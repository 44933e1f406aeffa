"""Test the served page with a client that fires its events."""

import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from core import runs
from core.after_training.export.records import ExportedFile, Manifest
from core.runs import Home, Run, launch
from tests.builders.fake_runs import NEVER_END
from tests.builders.ports import free_port
from ui import page, server
from ui.gate import GatePolicy
from ui.handlers import Handlers

SECONDS_TO_TRAIN = 20


@dataclass(frozen=True)
class Wire:
    """Fires events by name, with the values that their inputs show on a new page."""

    client: Client
    home: Home

    @property
    def run(self) -> Run:
        """Return the newest run once its program has ended."""
        return launch.wait(self.home, runs.listing.list_runs(self.home)[0].id, SECONDS_TO_TRAIN)

    def fire(self, event: str, **changes: object) -> dict[str, Any]:
        """Return {element id: what came back} of the components that the event changed."""
        components = {each["id"]: each for each in self.client.config["components"]}
        (wired, *_) = [
            each for each in self.client.config["dependencies"] if each["api_name"] == event
        ]
        inputs = [
            components[number]["props"]
            for number in wired["inputs"]
            if components[number]["type"] != "state"
        ]
        values = {each.get("elem_id"): each.get("value") for each in inputs}
        results = self.client.predict(*(values | changes).values(), api_name=f"/{event}")
        outputs = [components[number] for number in wired["outputs"]]
        names = [each["props"].get("elem_id") for each in outputs if not each.get("skip_api")]
        shown = zip(names, results, strict=True)
        return {name: value for name, value in shown if value != {"__type__": "update"}}


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    home = Home.find(str(tmp_path_factory.mktemp("wire")))
    handlers = Handlers(home)
    blocks = page.build(handlers)
    server.launch(blocks, home, GatePolicy(), free_port())
    client = Client(blocks.local_url, verbose=False)
    yield Wire(client, home)
    client.close()
    blocks.close(verbose=False)
    handlers.close()


def test_an_edit_is_answered(wire: Wire) -> None:
    shown = wire.fire("on_edit", **{"field-lora_r": -1})
    assert "cannot run yet" in shown["estimate"]
    assert "give 1 or more" in str(shown["field-lora_r"])


def test_boxes_of_a_place_are_sent_with_a_start(wire: Wire) -> None:
    shown = wire.fire("on_start", where="ray", address="ftp://head")
    assert "&#x27;ftp://head&#x27; is no web address" in shown["start-message"]


def test_a_run_is_started_and_watched(wire: Wire, fake_program: None) -> None:
    shown = wire.fire("on_start")
    run = wire.run
    assert run.id in shown["run-header"]
    shown = wire.fire("on_changed", **{"run-id": run.id})
    assert "Finished" in shown["run-header"]
    assert json.loads(shown["figures"])["loss"]["data"][0]["name"] == "train"


def test_a_run_is_stopped(wire: Wire, fake_program: None) -> None:
    wire.fire("on_start", **{"field-seed": NEVER_END})
    wire.fire("on_stop", **{"run-id": runs.listing.list_runs(wire.home)[0].id})
    assert wire.run.state == "stopped"


def test_a_bundle_is_downloaded(wire: Wire, fake_program: None) -> None:
    wire.fire("on_start")
    found = httpx.get(f"{wire.client.src}bundle/{wire.run.id}.zip")
    names = zipfile.ZipFile(io.BytesIO(found.content)).namelist()
    assert any(name.endswith("job.json") for name in names)
    assert not [name for name in names if name.startswith(("/", ".."))]


def test_a_file_of_an_export_is_downloaded(wire: Wire, fake_program: None) -> None:
    folder = wire.run.folder / "exports" / "gguf-Q8_0"
    folder.mkdir(parents=True)
    (folder / "m.gguf").write_bytes(b"GGUF")
    files = (ExportedFile("m.gguf", 4, ""),)
    Manifest("gguf", "trained", "Q8_0", files, None).write(folder)
    address = f"{wire.client.src}export/{wire.run.id}/gguf-Q8_0"
    assert httpx.get(f"{address}/m.gguf").content == b"GGUF"
    assert httpx.get(f"{address}/export.json").status_code == 404
    assert httpx.get(f"{address}/..%2f..%2fjob.json").status_code == 404
    (folder / "m.gguf").unlink()
    assert httpx.get(f"{address}/m.gguf").status_code == 404


def test_no_other_file_is_downloaded(wire: Wire) -> None:
    found = httpx.get(f"{wire.client.src}bundle/..%2f..%2ftoken.zip")
    assert found.status_code == 404


def test_the_page_lists_no_api(wire: Wire) -> None:
    api = wire.client.view_api(return_format="dict", print_info=False)
    assert api["named_endpoints"] == {}


def answer_to(wire: Wire, event: str, sent: object) -> httpx.Response:
    """Send a value in place of the first input of an event. Return the answer."""
    config = wire.client.config
    (wired, *_) = [each for each in config["dependencies"] if each["api_name"] == event]
    data = [sent, *(None for _number in wired["inputs"][1:])]
    body = {"fn_index": wired["id"], "data": data, "session_hash": "test"}
    return httpx.post(f"{wire.client.src}gradio_api/run/predict", json=body)


def file_at(path: object) -> dict[str, object]:
    """Return what a browser sends for a file that it has uploaded."""
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "nothing", "\0", "http://127.0.0.1:1/data", "../token", 5, None]
)
def test_file_that_was_not_uploaded_is_refused_in_words(wire: Wire, path: object) -> None:
    said = answer_to(wire, "on_tick", [file_at(path)]).json()["error"]
    assert said == "The request names a file that was not uploaded here. Upload it again."


def test_upload_that_names_a_file_of_the_server_is_refused_in_words(wire: Wire) -> None:
    sent = {"path": "/etc/passwd"}  # without `meta`, or the client would upload it
    with pytest.raises(AppError, match="was not uploaded here"):
        wire.client.predict(sent, api_name="/on_upload")


def test_upload_that_is_no_file_is_refused_in_words(wire: Wire) -> None:
    with pytest.raises(AppError, match="Reload the page"):
        wire.client.predict({"a": 1}, api_name="/on_upload")


def test_too_few_values_are_refused_in_words(wire: Wire) -> None:
    (wired, *_) = [
        each for each in wire.client.config["dependencies"] if each["api_name"] == "on_tick"
    ]
    body = {"fn_index": wired["id"], "data": [], "session_hash": "test"}
    answer = httpx.post(f"{wire.client.src}gradio_api/run/predict", json=body)
    assert "Reload the page" in answer.json()["error"]
