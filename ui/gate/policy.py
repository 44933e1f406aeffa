"""Rules of the gate: the token, the names under which the page is reached, and sizes."""

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote, urlsplit

MIN_TOKEN_LENGTH: Final = 20
"""120 bits in base 64: too many to guess."""
UPLOAD_PATH: Final = "/gradio_api/upload"
DEFAULT_PORTS: Final = {"http": 80, "https": 443}
HOST_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9._-]{0,252})", re.ASCII)
PUBLIC_PATH: Final = re.compile(r"(/[A-Za-z0-9._~@:%+-]+)*", re.ASCII)
"""Characters that need no quoting in a header, a cookie and a page."""

Ends = tuple[str, int]
"""Address and port of one end of a connection."""


def is_loopback(host: str) -> bool:
    """Return whether a name or address can only mean this machine."""
    address = address_of(host)
    return host.lower() == "localhost" or (address is not None and address.is_loopback)


def address_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the IP address that a text is, None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def login_url(url: str, token: str | None) -> str:
    """Return the link that opens the page at `url`: the one to print."""
    return f"{url.rstrip('/')}/?token={quote(token)}" if token else url


@dataclass(frozen=True)
class PublicUrl:
    """Address at which a proxy in front of the page serves it."""

    scheme: str
    host: str
    port: int
    path: str
    """Path in front of the page's own paths; "" for none. Has no slash at its end."""

    @classmethod
    def parse(cls, text: str) -> "PublicUrl":
        """Read an address such as https://host/path. Raises ValueError."""
        fix = "give an address such as https://host/path"
        try:
            parts = urlsplit(text.strip())
            port = parts.port
        except ValueError:
            raise ValueError(f"public-url: {text!r} is not an address; {fix}") from None
        host, path = (parts.hostname or "").lower(), parts.path.rstrip("/")
        is_name = HOST_NAME.fullmatch(host) or address_of(host)
        if parts.scheme not in DEFAULT_PORTS or not is_name or not PUBLIC_PATH.fullmatch(path):
            raise ValueError(f"public-url: {text!r} is not an address of a page; {fix}")
        if parts.query or parts.fragment or "@" in parts.netloc:
            raise ValueError(f"public-url: {text!r} has more than a host and a path; {fix}")
        return cls(parts.scheme, host, port or DEFAULT_PORTS[parts.scheme], path)

    @property
    def origin(self) -> str:
        """Origin header of what the page sends."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == DEFAULT_PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{host}{port}"

    @property
    def url(self) -> str:
        """Address of the page, without a slash at its end."""
        return self.origin + self.path

    def own_path(self, path: str) -> str | None:
        """Return the page's own path of a requested one; None if it is not under this address."""
        prefix = unquote(self.path)
        if path == prefix or path.startswith(f"{prefix}/"):
            return path[len(prefix) :]
        return None


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
    public_urls: tuple[PublicUrl, ...] = ()
    """Addresses at which a proxy serves the page."""
    is_own: Callable[[Ends, Ends], bool] | None = field(default=None, repr=False)
    """Returns whether the client's end of a loopback connection, (client, server), needs no token;
    None asks everyone."""
    pause_seconds: float = 60
    """A body of which nothing has come for so long is given up."""
    upload_folder: Path | None = None
    """Folder in which the app stores uploads."""
    share_hosts: set[str] = field(default_factory=set)
    """Public names of this page, known once the tunnel is up."""

    def __post_init__(self) -> None:
        if self.token is None and not is_loopback(self.host):
            raise ValueError(f"others can reach {self.host}, so the page needs a token")
        if self.public_urls and not self.asks_everyone:
            raise ValueError("others can reach a public address, so the page needs a token")
        if self.token is not None and len(self.token) < MIN_TOKEN_LENGTH:
            raise ValueError(f"the token is too short; give at least {MIN_TOKEN_LENGTH} characters")

    @property
    def asks_everyone(self) -> bool:
        """True if programs of our own account on this machine need the token too."""
        return self.token is not None and self.is_own is None

    def allow_share(self, url: str) -> None:
        """Admit visitors of a public link to the login. Raises ValueError without a token."""
        if not self.asks_everyone:
            raise ValueError("a shared page needs a token")
        self.share_hosts.add((urlsplit(url).hostname or "").lower())

    def allows_host(self, host: str) -> bool:
        """Return whether a request may name this host.

        Any address is safe on a page that listens on all: DNS rebinding needs a name.
        """
        if self.host in ("0.0.0.0", "::") and address_of(host):
            return True
        if any(public.host == host for public in self.public_urls):
            return True
        return is_loopback(host) or host in {self.host.lower(), *self.share_hosts}

    def max_bytes(self, path: str) -> int:
        """Return the largest body that a path takes."""
        return self.max_body_bytes + (self.max_upload_bytes if path == UPLOAD_PATH else 0)

    def public_url_of(self, host: str, path: str) -> PublicUrl | None:
        """Return the public address that a host and a path belong to, the longest one.

        A proxy may have removed the path: then it is the shortest one of this host.
        """
        here = [public for public in self.public_urls if public.host == host]
        under = [public for public in here if public.own_path(path) is not None]

        def length(public: PublicUrl) -> int:
            return len(public.path)

        return max(under, key=length) if under else min(here, key=length, default=None)
