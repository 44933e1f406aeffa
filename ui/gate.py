"""Who may come in: Host and Origin checks, size limits and the token, in front of every route (ASGI middleware).

Knows nothing of Gradio but two of its paths; never reads a body, never sees a job.
"""

import hashlib
import hmac
import ipaddress
import math
import os
import re
import secrets
import stat
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, quote, urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

Headers = list[tuple[bytes, bytes]]

MIN_TOKEN_LENGTH: Final = 20
"""Shortest token accepted: 120 bits in base 64, out of reach of guessing."""

STARTUP_PATH: Final = "/gradio_api/startup-events"
"""Gradio calls it on itself before the page is up and must get a 200; it answers true or false and nothing else."""
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
    # Gradio's page starts from inline scripts that hold its configuration, and runs the `js=` of events with Function.
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
SECURITY_HEADERS: Final[Headers] = [
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
    (b"x-frame-options", b"DENY"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-robots-tag", b"noindex"),
]
NEVER_STORED: Final = (b"text/html", b"application/json")

LOGIN_PAGE: Final = b"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Tailor: log in</title>
<style>
  :root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
  body { max-width: 26rem; margin: 18vh auto 0; padding: 0 1rem }
  input, button { font: inherit; padding: .5rem .75rem; width: 100%; box-sizing: border-box; margin-top: .5rem }
</style>
<h1>Tailor</h1>
<p>Open the link that Tailor printed when it started, or paste the token from that link.</p>
<form action="/"><label for="token">Token</label>
  <input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
  <button>Log in</button>
</form></html>
"""


def new_token() -> str:
    """A secret that opens the page: 32 random bytes, URL-safe."""
    return secrets.token_urlsafe(32)


def load_or_create_token(path: Path) -> str:
    """The token kept in a file, so that links live on after a restart; made (mode 0600) if there is none.

    Raises ValueError if the file holds no token, is not a plain file, or others may read it.
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
    """The link that opens the page at `url`: the one to print."""
    return f"{url.rstrip('/')}/?token={quote(token)}" if token else url


def is_loopback(host: str) -> bool:
    """True if the name or address can only mean this machine."""
    return host.lower() == "localhost" or bool((address := _address(host)) and address.is_loopback)


@dataclass(frozen=True)
class GatePolicy:
    """Who may come in, and how much they may send. Raises ValueError if others could come in without a token."""

    token: str | None = field(default=None, repr=False)
    """The secret that opens the page; None leaves it open, on loopback only."""
    host: str = "127.0.0.1"
    """The name or address that the page listens on; 0.0.0.0 and :: admit every address, but still no other name."""
    max_upload_bytes: int = 512 * 2**20
    max_body_bytes: int = 2**20
    """Limit of every request but an upload; also what an upload may add to its file as envelope."""
    share_hosts: set[str] = field(default_factory=set)
    """Public names of this page, known only once the tunnel stands."""

    def __post_init__(self) -> None:
        if self.token is None and not is_loopback(self.host):
            raise ValueError(f"others can reach {self.host}, so the page needs a token")
        if self.token is not None and len(self.token) < MIN_TOKEN_LENGTH:
            raise ValueError(f"the token is too short; give at least {MIN_TOKEN_LENGTH} characters")

    def allow_share(self, url: str) -> None:
        """Lets visitors of a public link in, to the login. Raises ValueError without a token."""
        if self.token is None:
            raise ValueError("a shared page needs a token")
        self.share_hosts.add((urlsplit(url).hostname or "").lower())

    def allows_host(self, host: str) -> bool:
        """True if a request may name this host. An address is safe on a page that listens to all: only names rebind."""
        if self.host in ("0.0.0.0", "::") and _address(host):
            return True
        return is_loopback(host) or host in {self.host.lower(), *self.share_hosts}

    def max_bytes(self, path: str) -> int:
        """Largest body that a path takes."""
        return self.max_body_bytes + (self.max_upload_bytes if path == UPLOAD_PATH else 0)


class Request:
    """What the gate looks at in a request."""

    def __init__(self, scope: Scope):
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query = parse_qs(
            scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True
        )
        self.headers: Headers = list(scope["headers"])
        self.is_https: bool = scope.get("scheme") == "https"
        self.address: str = (scope.get("client") or ("unknown", 0))[0]
        named = HOST_HEADER.fullmatch(self.header(b"host"))
        self.host, self.port = (
            (named["host"].lower().strip("[]"), named["port"] or "") if named else ("", "")
        )

    def header(self, name: bytes) -> str:
        """The header's value; empty if absent or sent more than once."""
        values = [value for key, value in self.headers if key == name]
        return values[0].decode("latin-1") if len(values) == 1 else ""

    def cookie(self, name: str) -> str:
        """The cookie's value; empty if there is none."""
        pairs = (part.strip().partition("=") for part in self.header(b"cookie").split(";"))
        return next((value for key, _, value in pairs if key == name), "")

    @property
    def is_foreign(self) -> bool:
        """True if another site's page made the browser send it. A click on a link to the page is not foreign."""
        if any(key == b"origin" for key, _ in self.headers):
            return (
                self.header(b"origin").lower().partition("://")[2] != self.header(b"host").lower()
            )
        if self.header(b"sec-fetch-site") in ("", "same-origin", "none"):
            return False
        is_click = (self.header(b"sec-fetch-mode"), self.header(b"sec-fetch-dest")) == (
            "navigate",
            "document",
        )
        return not (is_click and self.method in ("GET", "HEAD") and self.path == "/")


@dataclass(frozen=True)
class Reply:
    """An answer of the gate itself."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    content_type: bytes = b"text/plain; charset=utf-8"

    async def send(self, request: Request, send: Send) -> None:
        """Sends it, without the body if only the head was asked for."""
        headers = [
            (b"content-type", self.content_type),
            (b"content-length", b"%d" % len(self.body)),
            *self.headers,
        ]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send(
            {"type": "http.response.body", "body": b"" if request.method == "HEAD" else self.body}
        )


HOME: Final = Reply(303, headers=((b"location", b"/"),))
NO_ENTRY: Final = Reply(401, LOGIN_PAGE, content_type=b"text/html; charset=utf-8")
WRONG_HOST: Final = Reply(
    421, b"This address does not lead to Tailor. Use the link that it printed.\n"
)
FOREIGN: Final = Reply(403, b"Refused: another site's page sent this.\n")
RETRY_LATER: Final = Reply(
    429, b"Too many wrong tokens. Try again in a minute.\n", ((b"retry-after", b"60"),)
)


class Gate:
    """ASGI middleware that lets a request through to the app, or answers it.

    Install with `launch(app_kwargs={"middleware": [Middleware(Gate, policy=policy)]})`. Sessions live as long as it.
    """

    def __init__(self, app: ASGIApp, policy: GatePolicy, clock: Callable[[], float] = time.time):
        self.app = app
        self.policy = policy
        self.sessions = Sessions(clock)
        self.throttle = Throttle(clock)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers an ASGI connection."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] == "http":
            request, send = Request(scope), _with_security_headers(send)
            if reply := self._refuse(request) or self._ask_token(request):
                await reply.send(request, send)
            else:
                await self._pass_on(request, scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _refuse(self, request: Request) -> Reply | None:
        """What no token makes acceptable."""
        declared = request.header(b"content-length")
        if not self.policy.allows_host(request.host):
            return WRONG_HOST
        if request.is_foreign:
            return FOREIGN
        if declared.isdecimal() and int(declared[:20]) > self.policy.max_bytes(request.path):
            return self._too_large(request)
        return None

    def _too_large(self, request: Request) -> Reply:
        text = (
            f"Too large: this address takes up to {self.policy.max_bytes(request.path):,} bytes.\n"
        )
        return Reply(413, text.encode(), ((b"connection", b"close"),))

    def _ask_token(self, request: Request) -> Reply | None:
        """None if the request may pass: it needs no token, belongs to a session, or bears the token."""
        is_open = self.policy.token is None or self.sessions.has(
            request.cookie(self._cookie_name(request))
        )
        if request.path == "/" and "token" in request.query:
            return HOME if is_open else self._log_in(request)
        if is_open or (request.path == STARTUP_PATH and request.method == "GET"):
            return None
        kind, _, offered = request.header(b"authorization").partition(" ")
        return self._check(request, offered.strip()) if kind.lower() == "bearer" else NO_ENTRY

    def _log_in(self, request: Request) -> Reply:
        """Exchanges the token of a link for a session, and leads away from the link."""
        if reply := self._check(request, request.query["token"][0]):
            return reply
        name = self._cookie_name(request)
        secure = "; Secure" if name.startswith("__Host-") else ""
        cookie = f"{name}={self.sessions.open()}; Path=/; Max-Age={SESSION_SECONDS}; HttpOnly; SameSite=Lax{secure}"
        return replace(HOME, headers=(*HOME.headers, (b"set-cookie", cookie.encode())))

    def _check(self, request: Request, offered: str) -> Reply | None:
        """None if the token is right. A peer that has failed too often is not even looked at."""
        is_forwarded = self._is_shared(request) or any(
            _tells_of_client(key) for key, _ in request.headers
        )
        peer = (
            "forwarded" if is_forwarded else request.address
        )  # behind a proxy the address is anyone's claim
        if self.throttle.is_closed_to(peer):
            return RETRY_LATER
        if self.policy.token and hmac.compare_digest(_digest(offered), _digest(self.policy.token)):
            return None
        self.throttle.note_failure(peer)
        return NO_ENTRY

    def _is_shared(self, request: Request) -> bool:
        """True if it came through the tunnel of a public link, which always is https."""
        return request.host in self.policy.share_hosts

    def _cookie_name(self, request: Request) -> str:
        """Cookies are shared by all ports of a host: the port keeps two Tailors apart."""
        return f"{'__Host-' if request.is_https or self._is_shared(request) else ''}tailor{request.port}"

    async def _pass_on(self, request: Request, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs the app, without what a stranger may claim of proxies, and with its body counted."""
        body = CountedBody(receive, send, self.policy.max_bytes(request.path))
        headers = [(key, value) for key, value in request.headers if not _tells_of_client(key)]
        if self._is_shared(request):
            headers.append((b"x-forwarded-proto", b"https"))  # Gradio writes links with it
        try:
            await self.app({**scope, "headers": headers}, body.receive, body.send)
        except Exception:
            if not body.is_refused:
                raise
        if body.is_refused:
            await self._too_large(request).send(request, send)


class Sessions:
    """Who has logged in: digests of random session ids, so that a leak of memory opens nothing."""

    def __init__(self, clock: Callable[[], float]):
        self.clock = clock
        self.seen: OrderedDict[bytes, tuple[float, float]] = OrderedDict()
        """Digest -> (opened, last seen) in seconds; the least recently seen first."""

    def open(self) -> str:
        """Begins a session; returns its id. The one unused longest makes room."""
        session = new_token()
        self.seen[_digest(session)] = (self.clock(), self.clock())
        while len(self.seen) > MAX_SESSIONS:
            self.seen.popitem(last=False)
        return session

    def has(self, session: str) -> bool:
        """True if the session is open: used within a day, opened within a week."""
        key, now = _digest(session), self.clock()
        opened, last_seen = self.seen.pop(key, (-math.inf, -math.inf))
        is_open = now - opened < SESSION_SECONDS and now - last_seen < SESSION_IDLE_SECONDS
        if is_open:
            self.seen[key] = (opened, now)
        return is_open


class Throttle:
    """Slows guessing. A refused guess is not counted, so one peer alone cannot lock out the others."""

    def __init__(self, clock: Callable[[], float]):
        self.clock = clock
        self.failures: deque[tuple[float, str]] = deque(maxlen=MAX_FAILURES)

    def is_closed_to(self, peer: str) -> bool:
        """True if this peer, or all peers together, failed too often within the window."""
        since = self.clock() - FAILURE_WINDOW_SECONDS
        recent = [who for when, who in self.failures if when > since]
        return len(recent) >= MAX_FAILURES or recent.count(peer) >= MAX_FAILURES_PER_PEER

    def note_failure(self, peer: str) -> None:
        """Counts a wrong token."""
        self.failures.append((self.clock(), peer))


class CountedBody:
    """A request's body, cut off at a limit, and the response to it, held back once the limit was passed."""

    def __init__(self, receive: Receive, send: Send, max_bytes: int):
        self._receive = receive
        self._send = send
        self.left = max_bytes
        self.has_answered = False

    @property
    def is_refused(self) -> bool:
        """True if the body was too large and nothing has been answered yet."""
        return self.left < 0 and not self.has_answered

    async def receive(self) -> Message:
        """The next message; a disconnect once the body is too large."""
        message = await self._receive()
        self.left -= len(message.get("body", b""))
        return message if self.left >= 0 else {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Passes the app's response on, unless it is about a body that was cut off."""
        if not self.is_refused:
            self.has_answered = True
            await self._send(message)


def _with_security_headers(send: Send) -> Send:
    """A `send` that adds the security headers to whatever response passes."""

    async def send_secured(message: Message) -> None:
        if message["type"] == "http.response.start":
            sent = [(key.lower(), value) for key, value in message.get("headers", ())]
            holds_data = any(
                key == b"content-type" and value.startswith(NEVER_STORED) for key, value in sent
            )
            added = SECURITY_HEADERS + [(b"cache-control", b"no-store")] * holds_data
            message = {
                **message,
                "headers": [item for item in sent if item[0] not in dict(added)] + added,
            }
        await send(message)

    return send_secured


def _read_token(path: Path) -> str:
    mode = path.lstat().st_mode
    if not stat.S_ISREG(mode) or (os.name == "posix" and mode & 0o077):
        raise ValueError(
            f"{path} is not a file that only you can read; delete it, and the next start makes a new one"
        )
    if len(token := path.read_text(encoding="utf-8").strip()) < MIN_TOKEN_LENGTH:
        raise ValueError(f"{path} holds no token; delete it, and the next start makes a new one")
    return token


def _tells_of_client(header: bytes) -> bool:
    """True for the headers in which a proxy tells of the client; Gradio builds its links from them."""
    return header.startswith(b"x-forwarded-") or header in (
        b"forwarded",
        b"x-real-ip",
        b"x-gradio-server",
    )


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
