"""Take a trained model away from its page: a zip for Ollama that answers in llama.cpp alone."""

import json
import re
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
from playwright.sync_api import Page, expect

from core import runs
from core.after_training.export import list_exports
from core.after_training.export.tools import FOLDER_VARIABLE, install, tools_folder
from core.job import SpecError
from core.runs import Home
from core.training.contract.files import sha256_of
from tests.builders.browser import BROWSER_TESTS, App, press, wait_until_finished
from tests.builders.chat_runs import WHO
from tests.builders.modelfiles import values_of
from tests.builders.paths import ROOT

pytestmark = [*BROWSER_TESTS, pytest.mark.slow]
DOWNLOAD_MS = 300_000
EXPORT_MS = 300_000
ASK = """
import json, sys
from pathlib import Path
from core.workers.llama_server import LlamaServer

server = LlamaServer(sys.argv[1], sys.argv[2], 512)
messages = [{"role": "user", "content": sys.argv[3]}]
found = server.ask("/v1/chat/completions", messages=messages, temperature=0, max_tokens=48)
Path(sys.argv[4]).write_text(json.dumps(found["choices"][0]), encoding="utf-8")
"""
"""Program that asks a GGUF file one question through llama.cpp's chat, and nothing else."""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip without the converters: a network that cannot give them is no fault of the page."""
    try:
        install(Home.find(str(tmp_path / "probe")))
    except SpecError as error:
        pytest.skip(f"no converters: {error.reason}")
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)


def test_the_zip_of_a_trained_demo_answers_without_tailor(
    installed: None, app: App, page: Page, home: Home, tmp_path: Path
) -> None:
    page.goto(app.url)
    expect(page.locator("#estimate .verdict")).to_contain_text("Fits")
    press(page, "Start training")
    wait_until_finished(page)
    (run,) = runs.listing.list_runs(home)

    press(page, "Install the converters")
    expect(page.get_by_role("button", name="Install the converters")).to_be_hidden(
        timeout=DOWNLOAD_MS
    )
    press(page, "Make it for Ollama")
    exports = page.locator("#exports")
    expect(exports.locator(".badge")).to_have_text("verified", timeout=EXPORT_MS)
    expect(exports).to_contain_text(re.compile(r"1\d of 16 answers"))
    link = exports.get_by_role("link", name=re.compile(r"Download .*\.zip"))
    with page.expect_download() as download:
        link.click()
    (export,) = list_exports(run)
    (zipped,) = [each for each in export.manifest.files if each.name.endswith(".zip")]
    archive = tmp_path / "carried.zip"
    download.value.save_as(archive)
    assert sha256_of(archive) == zipped.sha256

    folder = tmp_path / "elsewhere"
    ZipFile(archive).extractall(folder)
    (modelfile,) = folder.rglob("Modelfile")
    text = modelfile.read_text(encoding="utf-8")
    (gguf,) = [modelfile.parent / name for name in values_of(text, "FROM")]
    assert "<|im_end|>" in values_of(text, "PARAMETER stop")
    answer = answer_of(gguf, home, tmp_path)
    assert "Pip" in answer["message"]["content"]
    assert answer["finish_reason"] == "stop"


def answer_of(gguf: Path, home: Home, folder: Path) -> dict:
    """Return the answer of a GGUF file to "Who are you?"."""
    place = folder / "answer.json"
    tools = str(tools_folder(home))
    command = [sys.executable, "-c", ASK, tools, str(gguf), WHO, str(place)]
    subprocess.run(command, check=True, cwd=ROOT, timeout=300, stdout=subprocess.DEVNULL)
    found: dict = json.loads(place.read_text(encoding="utf-8"))
    return found
