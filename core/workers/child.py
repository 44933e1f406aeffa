"""Child's side of core/device/child.py: limits, requests, progress and answers, as JSON lines.

Knows nothing of what is asked. One request is answered after the other.
"""

import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, TextIO

from core.device.child import Limits
from core.job import Problem

SECONDS_BETWEEN_REPORTS = 0.2

Request = Mapping[str, Any]


class Reporter:
    """Sends the share of the work that is done to the parent, a few times a second."""

    def __init__(self, messages: TextIO) -> None:
        self._messages = messages
        self._reported_at = 0.0

    def __call__(self, share: float) -> None:
        now = time.monotonic()
        if share >= 1 or now - self._reported_at > SECONDS_BETWEEN_REPORTS:
            self._reported_at = now
            send(self._messages, {"progress": min(1.0, share)})


AnswerRequest = Callable[[Request, Reporter], object]
"""Return what is asked, as JSON can hold it."""
Explain = Callable[[Exception, Request], Problem]
"""Return what to tell the user of an error that a request raised."""


def no_work() -> bool:
    """Return False: there is nothing to do between requests."""
    return False


def serve(answer: AnswerRequest, explain: Explain, work: Callable[[], bool] = no_work) -> None:
    """Answer the requests on standard input until it ends, under the limits in its first line.

    `work` is called between requests and returns whether there is more of it to do.
    """
    # Libraries print to standard output, where only messages may go.
    messages, sys.stdout = sys.stdout, sys.stderr
    requests: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
    limits = Limits(**json.loads(sys.stdin.readline()))
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    apply_limits(limits)
    has_work = False
    while True:
        try:
            request = requests.get(block=not has_work)
        except queue.Empty:
            has_work = work()
            continue
        if request is None:
            return
        try:
            found = {"answer": answer(request, Reporter(messages))}
        except Exception as error:  # from files, templates and models of strangers
            found = {"problem": asdict(explain(error, request))}
        send(messages, found)
        has_work = work()


def send(messages: TextIO, message: Mapping[str, object]) -> None:
    """Write one message as a line."""
    messages.write(json.dumps(message) + "\n")
    messages.flush()


def apply_limits(limits: Limits) -> None:
    """Limit what a hostile file or template can make this process use."""
    if os.name != "posix":
        return
    import resource
    import signal

    # A file that grows too large becomes an OSError instead of the end of this process.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for kind, value in (
        (resource.RLIMIT_AS, limits.address_space_bytes),
        (resource.RLIMIT_DATA, limits.data_bytes),
        (resource.RLIMIT_CPU, limits.cpu_seconds),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
    ):
        if value is not None:
            resource.setrlimit(kind, (value, value))


def _listen(requests: "queue.SimpleQueue[Request | None]") -> None:
    for line in sys.stdin:
        requests.put(json.loads(line))
    requests.put(None)
