"""ASGI middleware that passes a request on to the app, or answers it."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final
from urllib.parse import quote

from starlette.datastructures import MutableHeaders
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ui.gate.accounts import GUEST_HEADER
from ui.gate.body import GuardedBody
from ui.gate.policy import UPLOAD_PATH, GatePolicy, is_loopback
from ui.gate.requests import Request, is_proxy_header
from ui.gate.sessions import SESSION_SECONDS, Sessions, Throttle, is_same_secret
from ui.gate.uploads import Uploads, is_full_disk

STARTUP_PATH: Final = "/gradio_api/startup-events"
"""Gradio asks itself here before the page is up and needs a 200. It answers true or false."""
CONTENT_SECURITY_POLICY: Final = (
    # Gradio's page starts from inline scripts with its configuration, and runs the `js=` of events
    # with Function.
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
SECURITY_HEADERS: Final = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-robots-tag": "noindex",
}
NEVER_STORED: Final = ("text/html", "application/json")
LOGIN_PAGE: Final = Path(__file__).with_name("login.html").read_text(encoding="utf-8")
FOREIGN: Final = PlainTextResponse("Refused: another site's page sent this.\n", 403)
RETRY_LATER: Final = PlainTextResponse(
    "Too many wrong tokens. Try again in a minute.\n", 429, {"retry-after": "60"}
)


class Gate:
    """ASGI middleware that passes a request on to the app, or answers it.

    Install it with `launch(app_kwargs={"middleware": [Middleware(Gate, policy=policy)]})`.
    """

    def __init__(self, app: ASGIApp, policy: GatePolicy, clock: Callable[[], float] = time.time):
        self.app = app
        self.policy = policy
        self.sessions = Sessions(clock)
        self.throttle = Throttle(clock)
        self.uploads = Uploads(policy.upload_folder)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle an ASGI connection."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] == "http":
            request, send = Request(scope, self.policy), _with_security_headers(send)
            reply = self._refuse(request) or self._ask_token(request)
            reply = reply or self._refuse_upload(request)
            if reply:
                await reply(scope, receive, send)
            elif request.path == UPLOAD_PATH:
                with self.uploads.arriving():
                    await self._pass_on(request, scope, receive, send)
            else:
                await self._pass_on(request, scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _refuse(self, request: Request) -> Response | None:
        """Return the answer to what no token makes acceptable, None for any other request."""
        declared = request.header(b"content-length")
        if not self.policy.allows_host(request.host):
            return _wrong_host(request)
        if request.is_foreign:
            return FOREIGN
        if declared.isdecimal() and int(declared[:20]) > self.policy.max_bytes(request.path):
            return self._too_large(request)
        if not request.path:  # a public address without the slash at its end
            return _go_home(request)
        return None

    def _refuse_upload(self, request: Request) -> Response | None:
        if request.path != UPLOAD_PATH or request.method != "POST":
            return None
        declared = request.header(b"content-length")
        problem = self.uploads.problem(int(declared[:20]) if declared.isdecimal() else 0)
        return _full_disk(problem) if problem else None

    def _too_large(self, request: Request) -> Response:
        limit = self.policy.max_bytes(request.path)
        text = f"Too large: this address takes up to {limit:,} bytes.\n"
        return PlainTextResponse(text, 413, {"connection": "close"})

    def _ask_token(self, request: Request) -> Response | None:
        """Return None if the request needs no token, belongs to a session, or has the token."""
        is_open = self.policy.token is None or self.sessions.has(
            request.cookie(_cookie_name(request))
        )
        is_open = is_open or self._is_from_own_account(request)
        if request.path == "/" and "token" in request.query:
            return _go_home(request) if is_open else self._log_in(request)
        if is_open or (request.path == STARTUP_PATH and request.method == "GET"):
            return None
        kind, _, offered = request.header(b"authorization").partition(" ")
        if kind.lower() == "bearer":
            return self._check(request, offered.strip())
        return _no_entry(request)

    def _is_from_own_account(self, request: Request) -> bool:
        """Return whether a program of our own account on this machine sent it for itself."""
        is_own, ends = self.policy.is_own, (request.client, request.server)
        if is_own is None or request.is_forwarded or not is_loopback(request.host):
            return False
        return is_loopback(request.client[0]) and is_own(*ends)

    def _log_in(self, request: Request) -> Response:
        """Exchange the token of a link for a session, and redirect away from the link."""
        if reply := self._check(request, request.query["token"][0]):
            return reply
        name, path = _cookie_name(request), request.home.rstrip("/") or "/"
        cookie = f"{name}={self.sessions.open()}; Path={path}; Max-Age={SESSION_SECONDS}"
        cookie += "; HttpOnly; SameSite=Lax"
        if request.is_https:
            cookie += "; Secure"
        return _go_home(request, {"set-cookie": cookie})

    def _check(self, request: Request, offered: str) -> Response | None:
        """Return None if the token is right, which wrong ones before it never prevent."""
        if self.policy.token and is_same_secret(offered, self.policy.token):
            return None
        # Behind a proxy the address may be forged: all its clients count as one.
        peer = request.client[0]
        if request.is_shared or request.public_url or request.is_forwarded:
            peer = "forwarded"
        if self.throttle.is_closed_to(peer):
            return RETRY_LATER
        self.throttle.note_failure(peer)
        return _no_entry(request)

    async def _pass_on(self, request: Request, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app without the proxy headers, which may be forged, and watch the body."""
        max_bytes = self.policy.max_bytes(request.path)
        body = GuardedBody(receive, send, max_bytes, self.policy.pause_seconds)
        own_scope = _own_scope(request, scope)
        if self.policy.token is not None and not self._is_from_own_account(request):
            own_scope["headers"].append((GUEST_HEADER.encode("ascii"), b"1"))
        try:
            await self.app(own_scope, body.receive, body.send)
        except Exception as error:
            if is_full_disk(error) and not body.has_answered:
                await _full_disk("The disk is full.")(scope, receive, send)
            elif not (body.is_refused or body.is_given_up):
                raise
        if body.is_refused:
            reply = self._too_large(request) if body.is_too_large else _too_late()
            await reply(scope, receive, send)


def _own_scope(request: Request, scope: Scope) -> Scope:
    """Return the scope as if the page were at the root of its host, without forged headers."""
    headers = [(key, value) for key, value in request.headers if not is_proxy_header(key)]
    own = {**scope, "headers": headers, "path": request.path}
    own["raw_path"] = quote(request.path).encode("ascii")
    # Gradio builds its links from these two.
    if request.public_url:
        headers.append((b"x-gradio-server", request.public_url.url.encode("ascii")))
    elif request.is_https:
        headers.append((b"x-forwarded-proto", b"https"))
    return own


def _cookie_name(request: Request) -> str:
    """Return a name with the port: browsers share cookies between the ports of a host."""
    prefix = ""
    if request.is_https:  # __Host- is for cookies of the path / only
        prefix = "__Host-" if request.home == "/" else "__Secure-"
    return f"{prefix}tailor{request.port}"


def _go_home(request: Request, headers: dict[str, str] | None = None) -> Response:
    return Response(status_code=303, headers={"location": request.home, **(headers or {})})


def _no_entry(request: Request) -> Response:
    # The home's path holds no character that HTML or an attribute would need quoted.
    return HTMLResponse(LOGIN_PAGE.replace('action="/"', f'action="{request.home}"'), 401)


def _wrong_host(request: Request) -> Response:
    text = "Tailor is not at this address. Use the link that it printed"
    if request.host and not request.host.replace(".", "").isdecimal() and ":" not in request.host:
        text += (
            f"; or, if this address is yours, start it with --public-url https://{request.host} "
            "(with http if it is, and with the path in front of it if there is one)"
        )
    return PlainTextResponse(f"{text}.\n", 421)


def _full_disk(text: str) -> Response:
    return PlainTextResponse(f"{text}\n", 507, {"connection": "close"})


def _too_late() -> Response:
    text = "Given up: nothing more of this request came.\n"
    return PlainTextResponse(text, 408, {"connection": "close"})


def _with_security_headers(send: Send) -> Send:
    """Return a `send` that adds the security headers to every response."""

    async def send_secured(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": list(message.get("headers", ()))}
            headers = MutableHeaders(scope=message)
            headers.update(SECURITY_HEADERS)
            if headers.get("content-type", "").startswith(NEVER_STORED):
                headers["cache-control"] = "no-store"
        await send(message)

    return send_secured
