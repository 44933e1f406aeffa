"""The gate in front of a page that Gradio serves: the promises of the gate that an upgrade of Gradio could break.

The page is a process of its own: Gradio leaves sockets and event loops open.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest

from tests.builders.paths import ROOT
from ui import gate
from ui.gate import new_token

TOKEN = new_token()
KIB = 1024

PAGE = """
import json, sys
import gradio
from starlette.middleware import Middleware
from ui.gate import Gate, GatePolicy
with gradio.Blocks(analytics_enabled=False) as blocks:
    name = gradio.Textbox("canary default", label="canary label")
    gradio.Button().click(lambda text: f"hello {text}", name, name, api_name="greet")
policy = GatePolicy(token=sys.argv[1], max_upload_bytes=64 * 1024, max_body_bytes=1024)
app_kwargs = {"middleware": [Middleware(Gate, policy=policy)], "openapi_url": None, "docs_url": None, "redoc_url": None}
blocks.queue(api_open=False).launch(prevent_thread_lock=True, quiet=True, share=False, app_kwargs=app_kwargs)
def paths(routes):
    for route in routes:
        yield from paths(route.original_router.routes) if hasattr(route, "original_router") else [route.path]
print(json.dumps({"url": blocks.local_url, "paths": sorted(set(paths(blocks.app.routes)))}), flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class Page:
    """What a page that Gradio serves on loopback behind the gate tells of itself."""

    url: str
    paths: list[str]


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """Such a page; it ends when its standard input does."""
    pytest.importorskip("gradio")
    environment = {**os.environ, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", PAGE, TOKEN],
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
    asked = [
        (method, path)
        for path in paths
        for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS")
    ]
    answered = {(method, path): client.request(method, path) for method, path in asked}
    assert answered.pop(("GET", gate.STARTUP_PATH)).status_code == 200
    assert len(answered) > 200
    assert {reply.status_code for reply in answered.values()} == {401}
    assert not [
        path
        for path, reply in answered.items()
        if len(reply.content) > 4 * KIB or b"canary" in reply.content
    ]


def test_the_link_opens_gradios_page(client: httpx.Client) -> None:
    reply = client.get(f"/?token={TOKEN}", follow_redirects=True)
    assert reply.status_code == 200 and "canary default" in reply.text
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
