"""Parts of a request that the gate looks at. Decides nothing by itself."""

import re
from typing import Final
from urllib.parse import parse_qs

from starlette.types import Scope

from ui.gate.policy import Ends, GatePolicy, PublicUrl, is_loopback

HOST_HEADER: Final = re.compile(
    r"(?P<host>\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(:(?P<port>\d{1,5}))?"
)
PROXY_HEADERS: Final = (b"forwarded", b"x-real-ip", b"x-gradio-server")
NOWHERE: Final[Ends] = ("unknown", 0)


class Request:
    """Parts of a request that the gate looks at."""

    def __init__(self, scope: Scope, policy: GatePolicy):
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        """Path of the page's own, without that of its public address."""
        query = scope.get("query_string", b"").decode("latin-1")
        self.query = parse_qs(query, keep_blank_values=True)
        self.headers: list[tuple[bytes, bytes]] = list(scope["headers"])
        self.client: Ends = scope.get("client") or NOWHERE
        self.server: Ends = scope.get("server") or NOWHERE
        self.host, self.port = _host_and_port(self.header(b"host"))
        self.public_url = self._public_url(policy)
        if self.public_url and (own_path := self.public_url.own_path(self.path)) is not None:
            self.path = own_path
        self.is_shared = self.host in policy.share_hosts
        self.is_https = self._is_https(scope)

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
    def home(self) -> str:
        """Path at which a browser finds the page."""
        return self.public_url.path + "/" if self.public_url else "/"

    @property
    def is_forwarded(self) -> bool:
        """True if a proxy says that it speaks for someone else."""
        return any(is_proxy_header(key) for key, _ in self.headers)

    @property
    def is_foreign(self) -> bool:
        """True if another site's page made the browser send it, but not by a click on a link."""
        if any(key == b"origin" for key, _ in self.headers):
            return not self._is_own_origin(self.header(b"origin").lower())
        if self.header(b"sec-fetch-site") in ("", "same-origin", "none"):
            return False
        how = (self.header(b"sec-fetch-mode"), self.header(b"sec-fetch-dest"))
        is_click = how == ("navigate", "document") and self.method in ("GET", "HEAD")
        return not (is_click and self.path in ("", "/"))

    def _is_own_origin(self, origin: str) -> bool:
        if self.public_url:
            return origin == self.public_url.origin
        return origin.partition("://")[2] == self.header(b"host").lower()

    def _public_url(self, policy: GatePolicy) -> PublicUrl | None:
        """Return the public address that this request came to.

        A proxy on this machine that sends its own name as the host may say the public one in
        X-Forwarded-Host, and a browser says it in Origin: both only choose among the addresses
        that the user gave.
        """
        named = [self.host]
        if is_loopback(self.host) and is_loopback(self.client[0]):
            forwarded = self.header(b"x-forwarded-host").partition(",")[0].strip()
            origin = self.header(b"origin").lower()
            named.append(_host_and_port(forwarded)[0])
            named += [each.host for each in policy.public_urls if each.origin == origin]
        for host in named:
            if found := policy.public_url_of(host, self.path):
                return found
        return None

    def _is_https(self, scope: Scope) -> bool:
        if self.public_url:
            return self.public_url.scheme == "https"
        if is_loopback(self.client[0]) and self.header(b"x-forwarded-proto") == "https":
            return True
        return scope.get("scheme") == "https" or self.is_shared


def is_proxy_header(header: bytes) -> bool:
    """Return whether a proxy describes the client in it. Gradio builds its links from these."""
    return header.startswith(b"x-forwarded-") or header in PROXY_HEADERS


def _host_and_port(text: str) -> tuple[str, str]:
    """Split a Host header; ("", "") for a malformed one."""
    named = HOST_HEADER.fullmatch(text)
    if not named:
        return "", ""
    return named["host"].lower().strip("[]"), named["port"] or ""
