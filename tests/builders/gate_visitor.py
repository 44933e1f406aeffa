"""Visitor of a gate in front of a trivial app, without a network."""

import asyncio
from typing import Any

import httpx
from starlette.types import Message, Receive, Scope, Send

from ui.gate import Gate, GatePolicy

TOKEN = "a-token-of-forty-three-characters-for-tests-"


class Echo:
    """App that reads the body of each request, and remembers the requests."""

    def __init__(self) -> None:
        self.scopes: list[Scope] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        while (message := await receive()).get("more_body"):
            pass
        if message["type"] == "http.disconnect":
            raise ConnectionError("the client is gone")
        headers = [
            (b"content-type", b"text/html"),
            (b"cache-control", b"max-age=9"),
            (b"x-frame-options", b"ALLOW"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"data of the app"})


class Visitor:
    """Client of a gate in front of an Echo. It keeps no cookies, and `now` is the gate's clock."""

    def __init__(self, policy: GatePolicy | None = None, base_url: str = "http://127.0.0.1:7860"):
        self.now = 1e9
        self.echo = Echo()
        self.gate = Gate(self.echo, policy or GatePolicy(token=TOKEN), lambda: self.now)
        self.base_url = base_url

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self.gate)
            async with httpx.AsyncClient(transport=transport, base_url=self.base_url) as client:
                return await client.request(method, path, **options)

        return asyncio.run(ask())

    def get(self, path: str = "/", **headers: str) -> httpx.Response:
        return self.ask(
            "GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()}
        )

    def log_in(self) -> str:
        """Open the link; return the Cookie header that a browser sends from then on."""
        return self.get(f"/?token={TOKEN}").headers["set-cookie"].partition(";")[0]


def open_visitor(**options: Any) -> Visitor:
    return Visitor(GatePolicy(**options))


def sent_by_gate(scope: Scope) -> list[Message]:
    """Return what an open gate sends for a connection that httpx cannot make."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(Gate(Echo(), GatePolicy())(scope, asyncio.Queue[Message]().get, send))
    return sent
