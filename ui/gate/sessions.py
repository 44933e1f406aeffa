"""Token and what it opens: its file, the sessions of browsers, and the limit on wrong tokens."""

import hashlib
import hmac
import os
import secrets
import stat
from collections import OrderedDict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ui.gate.policy import MIN_TOKEN_LENGTH

SESSION_SECONDS: Final = 7 * 86_400
SESSION_IDLE_SECONDS: Final = 86_400
MAX_SESSIONS: Final = 1000
FAILURE_WINDOW_SECONDS: Final = 60
MAX_FAILURES: Final = 30
MAX_FAILURES_PER_PEER: Final = 10
DELETE_IT: Final = "delete it, and the next start makes a new one"


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


def is_same_secret(offered: str, secret: str) -> bool:
    """Compare two secrets in a time that does not tell how much of them is equal."""
    return hmac.compare_digest(_digest(offered), _digest(secret))


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


def _read_token(path: Path) -> str:
    mode = path.lstat().st_mode
    if not stat.S_ISREG(mode) or (os.name == "posix" and mode & 0o077):
        raise ValueError(f"{path} is not a file that only you can read; {DELETE_IT}")
    token = path.read_text(encoding="utf-8").strip()
    if len(token) < MIN_TOKEN_LENGTH:
        raise ValueError(f"{path} holds no token; {DELETE_IT}")
    return token


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
