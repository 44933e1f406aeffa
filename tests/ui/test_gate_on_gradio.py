"""Test the gate in front of a page that Gradio serves: what a new version of Gradio could break.

The page runs in a child process, because Gradio leaves sockets and event loops open.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import httpx
import pytest

from tests.builders.paths import ROOT
from ui import gate
from ui.gate import new_token

TOKEN = new_token()
KIB = 1024

PROGRAM = """
import json, sys
import gradio
from starlette.middleware import Middleware
from ui.gate import Gate, GatePolicy
with gradio.Blocks(analytics_enabled=False) as blocks:
    name = gradio.Textbox("canary default", label="canary label")
    gradio.Button().click(lambda text: f"hello {text}", name, name, api_name="greet")
policy = GatePolicy(token=sys.argv[1], max_upload_bytes=64 * 1024, max_body_bytes=1024)
no_docs = {"openapi_url": None, "docs_url": None, "redoc_url": None}
blocks.queue(api_open=False).launch(
    prevent_thread_lock=True,
    quiet=True,
    share=False,
    app_kwargs={"middleware": [Middleware(Gate, policy=policy)], **no_docs},
)
def paths(routes):
    for route in routes:
        if hasattr(route, "original_router"):
            yield from paths(route.original_router.routes)
        else:
            yield route.path
found = sorted(set(paths(blocks.app.routes)))
print(json.dumps({"url": blocks.local_url, "paths": found}), flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class Page:
    """Served page: its address and the paths of its routes."""

    url: str
    paths: list[str]


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """Serve a page. It ends when its standard input is closed."""
    pytest.importorskip("gradio")
    environment = {**os.environ, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, TOKEN],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout
        line = next((line for line in process.stdout if line.startswith(b"{")), b"")
        yield Page(**json.loads(line))


@pytest.fixture
def client(page: Page) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=page.url) as client:
        yield client


def test_no_route_of_gradio_answers_without_the_token(page: Page, client: httpx.Client) -> None:
    paths = [path.replace("{", "").replace("}", "") for path in page.paths]
    methods = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS")
    replies = {asked: client.request(*asked) for asked in product(methods, paths)}
    assert replies.pop(("GET", gate.STARTUP_PATH)).status_code == 200
    assert len(replies) > 200
    assert {reply.status_code for reply in replies.values()} == {401}
    assert not [asked for asked, reply in replies.items() if len(reply.content) > 4 * KIB]
    assert not [asked for asked, reply in replies.items() if b"canary" in reply.content]


def test_the_link_opens_gradios_page(client: httpx.Client) -> None:
    reply = client.get(f"/?token={TOKEN}", follow_redirects=True)
    assert reply.status_code == 200
    assert "canary default" in reply.text
    assert reply.headers["cache-control"] == "no-store"
    assert "token" not in str(reply.url)


def test_gradio_stores_no_upload_over_the_limit(client: httpx.Client) -> None:
    client.headers["authorization"] = f"Bearer {TOKEN}"
    answers = [
        client.post("/gradio_api/upload", files={"files": b"x" * size}).status_code
        for size in (60 * KIB, 70 * KIB)
    ]
    assert answers == [200, 413]


def test_a_large_body_in_chunks_is_refused_by_the_gate_not_by_gradio(client: httpx.Client) -> None:
    client.headers["authorization"] = f"Bearer {TOKEN}"
    reply = client.post("/gradio_api/queue/join", content=iter([b"[" * 1000] * 5))
    assert reply.status_code == 413


def test_gradio_client_passes_with_the_token_as_bearer(page: Page) -> None:
    from gradio_client import Client

    client = Client(page.url, headers={"Authorization": f"Bearer {TOKEN}"}, verbose=False)
    assert client.predict("you", api_name="/greet") == "hello you"
