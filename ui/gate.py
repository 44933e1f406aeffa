"""Access control in front of every route (ASGI middleware): Host, Origin, sizes and the token.

Knows two paths of Gradio and nothing else of it. Never reads a body, never sees a job.
"""

import hashlib
import hmac
import ipaddress
import os
import re
import secrets
import stat
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, quote, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MIN_TOKEN_LENGTH: Final = 20
"""120 bits in base 64: too many to guess."""
STARTUP_PATH: Final = "/gradio_api/startup-events"
"""Gradio asks itself here before the page is up and needs a 200. It answers true or false."""
UPLOAD_PATH: Final = "/gradio_api/upload"
SESSION_SECONDS: Final = 7 * 86_400
SESSION_IDLE_SECONDS: Final = 86_400
MAX_SESSIONS: Final = 1000
FAILURE_WINDOW_SECONDS: Final = 60
MAX_FAILURES: Final = 30
MAX_FAILURES_PER_PEER: Final = 10
HOST_HEADER: Final = re.compile(
    r"(?P<host>\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(:(?P<port>\d{1,5}))?"
)

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
PROXY_HEADERS: Final = (b"forwarded", b"x-real-ip", b"x-gradio-server")
DELETE_IT: Final = "delete it, and the next start makes a new one"
LOGIN_PAGE: Final = Path(__file__).with_name("login.html").read_bytes()


def new_token() -> str:
    """Return a new secret: 32 random bytes, URL-safe."""
    return secrets.token_urlsafe(32)


def load_or_create_token(path: Path) -> str:
    """Return the token kept in a file, so that links stay valid after a restart.

    Writes the file (mode 0600) if there is none. Raises ValueError if it holds no token, is not a
    plain file, or others may read it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    token = new_token()
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(token + "\n")
    except FileExistsError:
        return _read_token(path)
    return token


def login_url(url: str, token: str | None) -> str:
    """Return the link that opens the page at `url`: the one to print."""
    return f"{url.rstrip('/')}/?token={quote(token)}" if token else url


def is_loopback(host: str) -> bool:
    """Return whether a name or address can only mean this machine."""
    address = _address(host)
    return host.lower() == "localhost" or (address is not None and address.is_loopback)


@dataclass(frozen=True)
class GatePolicy:
    """Rules of the gate. Raises ValueError if others could reach the page without a token."""

    token: str | None = field(default=None, repr=False)
    """Secret that opens the page; None leaves it open, on loopback only."""
    host: str = "127.0.0.1"
    """Name or address that the page listens on. 0.0.0.0 and :: admit every address, but no name."""
    max_upload_bytes: int = 512 * 2**20
    max_body_bytes: int = 2**20
    """Limit of every other request, and of what an upload may add to its file."""
    share_hosts: set[str] = field(default_factory=set)
    """Public names of this page, known once the tunnel is up."""

    def __post_init__(self) -> None:
        if self.token is None and not is_loopback(self.host):
            raise ValueError(f"others can reach {self.host}, so the page needs a token")
        if self.token is not None and len(self.token) < MIN_TOKEN_LENGTH:
            raise ValueError(f"the token is too short; give at least {MIN_TOKEN_LENGTH} characters")

    def allow_share(self, url: str) -> None:
        """Admit visitors of a public link to the login. Raises ValueError without a token."""
        if self.token is None:
            raise ValueError("a shared page needs a token")
        self.share_hosts.add((urlsplit(url).hostname or "").lower())

    def allows_host(self, host: str) -> bool:
        """Return whether a request may name this host.

        Any address is safe on a page that listens on all: DNS rebinding needs a name.
        """
        if self.host in ("0.0.0.0", "::") and _address(host):
            return True
        return is_loopback(host) or host in {self.host.lower(), *self.share_hosts}

    def max_bytes(self, path: str) -> int:
        """Return the largest body that a path takes."""
        return self.max_body_bytes + (self.max_upload_bytes if path == UPLOAD_PATH else 0)


class Request:
    """Parts of a request that the gate looks at."""

    def __init__(self, scope: Scope):
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        query = scope.get("query_string", b"").decode("latin-1")
        self.query = parse_qs(query, keep_blank_values=True)
        self.headers: list[tuple[bytes, bytes]] = list(scope["headers"])
        self.is_https: bool = scope.get("scheme") == "https"
        self.address: str = (scope.get("client") or ("unknown", 0))[0]
        self.host = self.port = ""
        if named := HOST_HEADER.fullmatch(self.header(b"host")):
            self.host = named["host"].lower().strip("[]")
            self.port = named["port"] or ""

    def header(self, name: bytes) -> str:
        """Return a header; "" if it is absent or was sent more than once."""
        values = [value for key, value in self.headers if key == name]
        return values[0].decode("latin-1") if len(values) == 1 else ""

    def cookie(self, name: str) -> str:
        """Return a cookie, "" if there is none."""
        for part in self.header(b"cookie").split(";"):
            key, _, value = part.strip().partition("=")
            if key == name:
                return value
        return ""

    @property
    def is_foreign(self) -> bool:
        """True if another site's page made the browser send it, but not by a click on a link."""
        if any(key == b"origin" for key, _ in self.headers):
            origin = self.header(b"origin").lower().partition("://")[2]
            return origin != self.header(b"host").lower()
        if self.header(b"sec-fetch-site") in ("", "same-origin", "none"):
            return False
        how = (self.header(b"sec-fetch-mode"), self.header(b"sec-fetch-dest"))
        is_click = how == ("navigate", "document") and self.method in ("GET", "HEAD")
        return not (is_click and self.path == "/")


HOME: Final = Response(status_code=303, headers={"location": "/"})
NO_ENTRY: Final = HTMLResponse(LOGIN_PAGE, 401)
WRONG_HOST: Final = PlainTextResponse(
    "Tailor is not at this address. Use the link that it printed.\n", 421
)
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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle an ASGI connection."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] == "http":
            request, send = Request(scope), _with_security_headers(send)
            if reply := self._refuse(request) or self._ask_token(request):
                await reply(scope, receive, send)
            else:
                await self._pass_on(request, scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _refuse(self, request: Request) -> Response | None:
        """Return the answer to what no token makes acceptable, None for any other request."""
        declared = request.header(b"content-length")
        if not self.policy.allows_host(request.host):
            return WRONG_HOST
        if request.is_foreign:
            return FOREIGN
        if declared.isdecimal() and int(declared[:20]) > self.policy.max_bytes(request.path):
            return self._too_large(request)
        return None

    def _too_large(self, request: Request) -> Response:
        limit = self.policy.max_bytes(request.path)
        text = f"Too large: this address takes up to {limit:,} bytes.\n"
        return PlainTextResponse(text, 413, {"connection": "close"})

    def _ask_token(self, request: Request) -> Response | None:
        """Return None if the request needs no token, belongs to a session, or has the token."""
        cookie = request.cookie(self._cookie_name(request))
        is_open = self.policy.token is None or self.sessions.has(cookie)
        if request.path == "/" and "token" in request.query:
            return HOME if is_open else self._log_in(request)
        if is_open or (request.path == STARTUP_PATH and request.method == "GET"):
            return None
        kind, _, offered = request.header(b"authorization").partition(" ")
        return self._check(request, offered.strip()) if kind.lower() == "bearer" else NO_ENTRY

    def _log_in(self, request: Request) -> Response:
        """Exchange the token of a link for a session, and redirect away from the link."""
        if reply := self._check(request, request.query["token"][0]):
            return reply
        name = self._cookie_name(request)
        cookie = f"{name}={self.sessions.open()}; Path=/; Max-Age={SESSION_SECONDS}"
        cookie += "; HttpOnly; SameSite=Lax"
        if name.startswith("__Host-"):
            cookie += "; Secure"
        return Response(status_code=303, headers={"location": "/", "set-cookie": cookie})

    def _check(self, request: Request, offered: str) -> Response | None:
        """Return None if the token is right. Peers that failed too often are not checked."""
        # Behind a proxy the address may be forged: all its clients count as one.
        peer = request.address
        if self._is_shared(request) or any(_is_proxy_header(key) for key, _ in request.headers):
            peer = "forwarded"
        if self.throttle.is_closed_to(peer):
            return RETRY_LATER
        if self.policy.token and hmac.compare_digest(_digest(offered), _digest(self.policy.token)):
            return None
        self.throttle.note_failure(peer)
        return NO_ENTRY

    def _is_shared(self, request: Request) -> bool:
        """Return whether it came through the tunnel of a public link, which is always https."""
        return request.host in self.policy.share_hosts

    def _cookie_name(self, request: Request) -> str:
        """Return a name with the port: browsers share cookies between the ports of a host."""
        is_secure = request.is_https or self._is_shared(request)
        prefix = "__Host-" if is_secure else ""
        return f"{prefix}tailor{request.port}"

    async def _pass_on(self, request: Request, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app without the proxy headers, which may be forged, and count the body."""
        body = CountedBody(receive, send, self.policy.max_bytes(request.path))
        headers = [(key, value) for key, value in request.headers if not _is_proxy_header(key)]
        if self._is_shared(request):
            headers.append((b"x-forwarded-proto", b"https"))  # Gradio builds links from it
        try:
            await self.app({**scope, "headers": headers}, body.receive, body.send)
        except Exception:
            if not body.is_refused:
                raise
        if body.is_refused:
            await self._too_large(request)(scope, receive, send)


class Sessions:
    """Open sessions. Keeps digests of their ids, so that leaked memory opens nothing."""

    def __init__(self, clock: Callable[[], float]):
        self.clock = clock
        self.seen: OrderedDict[bytes, tuple[float, float]] = OrderedDict()
        """Digest -> (opened, last seen) in seconds, least recently seen first."""

    def open(self) -> str:
        """Start a session and return its id. The least recently used ones make room."""
        session = new_token()
        now = self.clock()
        self.seen[_digest(session)] = (now, now)
        while len(self.seen) > MAX_SESSIONS:
            self.seen.popitem(last=False)
        return session

    def has(self, session: str) -> bool:
        """Return whether a session is open: used within a day, started within a week."""
        key = _digest(session)
        now = self.clock()
        if key not in self.seen:
            return False
        opened, last_seen = self.seen.pop(key)
        is_open = now - opened < SESSION_SECONDS and now - last_seen < SESSION_IDLE_SECONDS
        if is_open:
            self.seen[key] = (opened, now)
        return is_open


class Throttle:
    """Limit on wrong tokens. Refused attempts do not count, so no peer can lock out the others."""

    def __init__(self, clock: Callable[[], float]):
        self.clock = clock
        self.failures: deque[tuple[float, str]] = deque(maxlen=MAX_FAILURES)

    def is_closed_to(self, peer: str) -> bool:
        """Return whether this peer, or all peers together, failed too often in the last minute."""
        since = self.clock() - FAILURE_WINDOW_SECONDS
        recent = [who for when, who in self.failures if when > since]
        return len(recent) >= MAX_FAILURES or recent.count(peer) >= MAX_FAILURES_PER_PEER

    def note_failure(self, peer: str) -> None:
        """Count a wrong token."""
        self.failures.append((self.clock(), peer))


class CountedBody:
    """Body of a request, cut off at a limit. Past the limit the app's response is held back."""

    def __init__(self, receive: Receive, send: Send, max_bytes: int):
        self._receive = receive
        self._send = send
        self.left = max_bytes
        self.has_answered = False

    @property
    def is_refused(self) -> bool:
        """True if the body was too large and nothing has been sent yet."""
        return self.left < 0 and not self.has_answered

    async def receive(self) -> Message:
        """Return the next message; a disconnect once the body is too large."""
        message = await self._receive()
        self.left -= len(message.get("body", b""))
        return message if self.left >= 0 else {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Pass the response on, unless it is to a body that was cut off."""
        if not self.is_refused:
            self.has_answered = True
            await self._send(message)


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


def _read_token(path: Path) -> str:
    mode = path.lstat().st_mode
    if not stat.S_ISREG(mode) or (os.name == "posix" and mode & 0o077):
        raise ValueError(f"{path} is not a file that only you can read; {DELETE_IT}")
    token = path.read_text(encoding="utf-8").strip()
    if len(token) < MIN_TOKEN_LENGTH:
        raise ValueError(f"{path} holds no token; {DELETE_IT}")
    return token


def _is_proxy_header(header: bytes) -> bool:
    """Return whether a proxy describes the client in it. Gradio builds its links from these."""
    return header.startswith(b"x-forwarded-") or header in PROXY_HEADERS


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
