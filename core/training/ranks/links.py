"""Links between the guards of the ranks: lines of JSON over TCP, to the guard of rank 0 and back.

The guard of rank 0 listens; the others find its port and a token in the run folder, and its
machine in MASTER_ADDR, as torch does. Who does not know the token is not listened to.
"""

import hmac
import json
import os
import secrets
import selectors
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..contract.files import write_json
from .rank import HEARTBEATS, Rank, read_words
from .silence import Silence

MEETING_PLACE = Path(HEARTBEATS) / "guard.json"
"""File in the run folder with the port and the token."""
SECONDS_BETWEEN_BEATS = 1.0
SECONDS_TO_CONNECT = 2.0
SECONDS_TO_GREET = 10.0
LONGEST_LINE = 64 * 1024
MOST_STRANGERS = 64
"""Connections at once on which nobody has said yet who they are; others are closed."""
LOOPBACK = ("127.0.0.1", "::1", "localhost")
Words = Mapping[str, Any]


class Link:
    """Connection to another guard."""

    def __init__(self, connection: socket.socket):
        self.connection = connection
        self.index: int | None = None
        """Rank of the other guard; None until it has said so."""
        self.opened_at = time.monotonic()
        self._received = b""
        connection.settimeout(SECONDS_TO_CONNECT)

    def send(self, words: Words) -> None:
        """Send an object. A connection that is lost is noticed by reading."""
        with suppress(OSError):
            self.connection.sendall(json.dumps(words).encode() + b"\n")

    def read(self) -> list[Words]:
        """Return the objects that have come. Raises OSError once the other has closed it, and
        ValueError for anything else than lines of objects."""
        received = self.connection.recv(LONGEST_LINE)
        if not received:
            raise ConnectionResetError
        *lines, self._received = (self._received + received).split(b"\n")
        if len(self._received) > LONGEST_LINE:
            raise ValueError
        found = [json.loads(line) for line in lines]
        if not all(isinstance(each, dict) for each in found):
            raise ValueError
        return found


class Links:
    """Links of one guard. Remembers how long each other rank is silent once it was heard."""

    def __init__(self, folder: Path, rank: Rank):
        self.folder, self.rank = folder, rank
        self.silences: dict[int, Silence] = {}
        """Rank -> silence of its guard. One that has ended as it should is not in it."""
        self.names: dict[int, str] = {}
        self.standing: dict[int, Words] = {}
        """Rank that stands still -> what it says of itself, as Standstill.words."""
        self._links: list[Link] = []
        self._selector = selectors.DefaultSelector()
        self._beat_at = time.monotonic()

    def watch(self, file: int) -> None:
        """Let `receive` return as soon as something can be read from a file, too."""
        self._selector.register(file, selectors.EVENT_READ)

    def forget(self, file: int) -> None:
        """Look at a file no longer."""
        self._selector.unregister(file)

    def receive(self, seconds: float) -> Iterator[Words]:
        """Yield the failures that other guards tell, after some seconds at most."""
        for key, _events in self._selector.select(seconds):
            if isinstance(key.data, Link):
                yield from self._read(key.data)
            elif isinstance(key.fileobj, socket.socket):
                self._accept(key.fileobj)
        for silence in self.silences.values():
            silence.grow()
        if time.monotonic() - self._beat_at >= SECONDS_BETWEEN_BEATS:
            self._beat_at = time.monotonic()
            self._drop_strangers()
            self._connect()
            self.tell({"beat": True, "standstill": self.standing.get(self.rank.index)})

    def hear_standstill(self, index: int, said: object) -> None:
        """Take what a rank says of itself while it stands still; None while it does not."""
        if isinstance(said, dict):
            self.standing[index] = said
        else:
            self.standing.pop(index, None)

    @property
    def all_stand_still(self) -> bool:
        """True if all ranks were heard, and none that has not ended gets on."""
        left = {*self.silences, self.rank.index}
        return len(self.names) == self.rank.count - 1 and left <= self.standing.keys()

    def tell(self, words: Words, but: Link | None = None) -> None:
        """Send words to the others."""
        for link in self._links:
            if link is not but and link.index is not None:
                link.send(words)

    def close(self) -> None:
        """Say goodbye, and close everything."""
        self.tell({"has_ended": True})
        for link in self._links:
            link.connection.close()
        self._selector.close()

    def _connect(self) -> None:
        """Connect if that is missing. The guard of rank 0 waits for the others."""

    def _accept(self, listener: socket.socket) -> None:
        """Take a new connection."""

    def _is_welcome(self, _words: Words) -> bool:
        """Return True if the first words of a link may be believed."""
        return True

    def _add(self, connection: socket.socket) -> Link:
        link = Link(connection)
        self._links.append(link)
        self._selector.register(connection, selectors.EVENT_READ, link)
        return link

    def _drop(self, link: Link) -> None:
        self._selector.unregister(link.connection)
        link.connection.close()
        self._links.remove(link)

    def _drop_strangers(self) -> None:
        """Close the links on which nobody has said who they are."""
        for link in list(self._links):
            if link.index is None and time.monotonic() - link.opened_at > SECONDS_TO_GREET:
                self._drop(link)

    def _read(self, link: Link) -> Sequence[Words]:
        failures = []
        try:
            for words in link.read():
                if link.index is None:
                    self._greet(link, words)
                self._hear(link, words)
                if isinstance(words.get("failure"), dict):
                    failures.append(words["failure"])
                    self.tell(words, but=link)
        except (OSError, ValueError, RecursionError):
            # Its silence grows from now on, until it is connected again.
            self._drop(link)
        return failures

    def _greet(self, link: Link, words: Words) -> None:
        """Take note of who is on a new link. Raises ValueError."""
        index = words.get("rank")
        if not self._is_welcome(words) or not isinstance(index, int):
            raise ValueError
        link.index, self.names[index] = index, str(words.get("name"))

    def _hear(self, link: Link, words: Words) -> None:
        index = link.index or 0
        self.hear_standstill(index, words.get("standstill"))
        if words.get("has_ended") is True:
            self.silences.pop(index, None)
            return
        self.silences.setdefault(index, Silence()).end()


class Hub(Links):
    """Links of the guard of rank 0."""

    def __init__(self, folder: Path, rank: Rank):
        super().__init__(folder, rank)
        host = own_address(os.environ.get("MASTER_ADDR", "localhost"))
        self._token = secrets.token_hex(16)
        self._listener = socket.create_server(("127.0.0.1" if host in LOOPBACK else "", 0))
        self._selector.register(self._listener, selectors.EVENT_READ)
        port = self._listener.getsockname()[1]
        self._meeting_place = folder / MEETING_PLACE
        write_json(self._meeting_place, {"host": host, "port": port, "token": self._token})
        self._meeting_place.chmod(0o600)

    def close(self) -> None:
        """Say goodbye, and close everything."""
        super().close()
        self._listener.close()
        with suppress(OSError):
            self._meeting_place.unlink()

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _address = listener.accept()
        except OSError:  # it is gone again, or no more files may be opened
            return
        if sum(link.index is None for link in self._links) >= MOST_STRANGERS:
            connection.close()
            return
        self._add(connection)

    def _is_welcome(self, words: Words) -> bool:
        token = str(words.get("token")).encode(errors="replace")
        return hmac.compare_digest(token, self._token.encode())

    def _greet(self, link: Link, words: Words) -> None:
        super()._greet(link, words)
        link.send({"rank": self.rank.index, "name": self.rank.name})


class Spoke(Links):
    """Link of another guard to that of rank 0."""

    def _connect(self) -> None:
        if self._links:
            return
        place = read_words(self.folder / MEETING_PLACE)
        with suppress(OSError, ValueError, KeyError):  # it is not there yet: later
            address = (str(place["host"]), int(str(place["port"])))
            link = self._add(socket.create_connection(address, SECONDS_TO_CONNECT))
            name, index = self.rank.name, self.rank.index
            link.send({"token": place["token"], "rank": index, "name": name})


def own_address(first: str) -> str:
    """Return the address at which others reach this machine, given one that they all reach."""
    if first in LOOPBACK:
        return "127.0.0.1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # sends nothing
        try:
            probe.connect((first, 9))
        except OSError:
            return first
        own = str(probe.getsockname()[0])
    return first if own.startswith("127.") else own  # its name may be that of loopback, here alone
