"""Limits on what visitors can hold open or make the server print. Knows uvicorn, not the page."""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from uvicorn import Server

HEAD_SECONDS: Final = 15
"""A connection that has not sent the head of a request by then is closed."""
MAX_CONNECTIONS: Final = 1000
RESERVED_FILES: Final = 512
"""Open files that are kept for everything but connections: runs, uploads, child processes."""
WANTED_FILES: Final = 4096
MAX_LINES_PER_MINUTE: Final = 5
"""Of one kind in the log."""


def raise_file_limit() -> int:
    """Allow this process more open files, as many as it may and needs. Return how many it has."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return WANTED_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_FILES if hard == resource.RLIM_INFINITY else min(WANTED_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):  # macOS allows less than it says
            return soft
    return max(soft, wanted)


class Waiting:
    """Connections that have asked for nothing yet, the longest waiting first."""

    def __init__(self, at_most: int, seconds: float):
        self.at_most = at_most
        """Connections of the server altogether."""
        self.seconds = seconds
        self._timers: OrderedDict[asyncio.Transport, asyncio.TimerHandle] = OrderedDict()

    def add(self, transport: asyncio.Transport) -> None:
        """Close a connection after some seconds, unless it is removed before."""
        if transport not in self._timers:
            loop = asyncio.get_running_loop()
            self._timers[transport] = loop.call_later(self.seconds, self._give_up, transport)

    def remove(self, transport: asyncio.Transport) -> None:
        """Let a connection live that has asked for something."""
        if timer := self._timers.pop(transport, None):
            timer.cancel()

    def make_room(self, num_connections: int) -> None:
        """Close the longest waiting connection if there are too many.

        A visitor who asks for something does so within a moment, and is not found here.
        """
        if num_connections > self.at_most:
            self._give_up(next(iter(self._timers)))

    def _give_up(self, transport: asyncio.Transport) -> None:
        self.remove(transport)
        transport.abort()


def guard(server: "Server", max_connections: int = 0, head_seconds: float = HEAD_SECONDS) -> None:
    """Limit the connections of a server, and the time that each may take to ask for something."""
    at_most = max_connections or min(MAX_CONNECTIONS, max(64, raise_file_limit() - RESERVED_FILES))
    waiting = Waiting(at_most, head_seconds)
    protocol = server.config.http_protocol_class

    class Guarded(protocol):  # type: ignore[misc, valid-type]
        """Protocol whose connections end if they ask for nothing."""

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            waiting.add(transport)
            waiting.make_room(len(self.connections))

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is None or self.cycle.response_complete:
                waiting.add(self.transport)
            else:
                waiting.remove(self.transport)

        def connection_lost(self, error: Exception | None) -> None:
            waiting.remove(self.transport)
            super().connection_lost(error)

    server.config.http_protocol_class = Guarded


class OncePerKind(logging.Filter):
    """Filter that lets only some lines of a kind through in a minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        super().__init__()
        self._clock = clock
        self._printed: OrderedDict[str, list[float]] = OrderedDict()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to print a line. The last one of a minute says that more may come."""
        kind = f"{record.name} {record.msg}"[:200]
        times = [when for when in self._printed.pop(kind, []) if when > self._clock() - 60]
        if len(times) < MAX_LINES_PER_MINUTE:
            times.append(self._clock())
            if len(times) == MAX_LINES_PER_MINUTE:
                record.msg = f"{record.msg} (more of these are left out for a minute)"
            is_printed = True
        else:
            is_printed = False
        self._printed[kind] = times
        while len(self._printed) > 100:
            self._printed.popitem(last=False)
        return is_printed


def quiet_logs() -> None:
    """Keep visitors from filling the log of the server."""
    for name in ("uvicorn.error", "asyncio"):
        logging.getLogger(name).addFilter(OncePerKind())
