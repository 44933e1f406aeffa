"""Ask a web server of a cluster, within a time that holds for the whole answer. Knows no cluster.

A server that sends a byte now and then, or a name that is not resolved, holds up one thread only.
"""

import threading
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

OK = 200
MAX_ANSWER_BYTES = 2**20
_open: dict[str, threading.Thread] = {}
"""Host -> thread that still waits for an answer that came too late."""


class StayHere(HTTPRedirectHandler):
    """Handler that follows no redirect, which would take the token elsewhere."""

    def redirect_request(self, *_arguments: object) -> None:
        """Return nothing, so that the answer counts as an error."""


def answer_to(request: Request, seconds: float) -> tuple[int, bytes]:
    """Return the code of an answer and what it says, at most MAX_ANSWER_BYTES of it.

    Raises TimeoutError, also while an earlier question to the host is not over. Raises OSError,
    HTTPException, ValueError as urllib does.
    """
    if (late := _open.get(request.host)) and late.is_alive():
        raise _no_answer(seconds)
    answers: list[tuple[int, bytes]] = []
    failures: list[Exception] = []

    def ask() -> None:
        try:
            answers.append(_answer(request, seconds))
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=ask, name=f"ask {request.host}", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        _open[request.host] = thread
        raise _no_answer(seconds)
    _open.pop(request.host, None)
    if failures:
        raise failures[0]
    return answers[0]


def _no_answer(seconds: float) -> TimeoutError:
    return TimeoutError(f"no whole answer within {seconds:g} s")


def _answer(request: Request, seconds: float) -> tuple[int, bytes]:
    # A cluster is reached directly: a proxy for the web would see its token.
    opener = build_opener(ProxyHandler({}), StayHere())
    try:
        with opener.open(request, timeout=seconds) as answer:
            return OK, answer.read(MAX_ANSWER_BYTES)
    except HTTPError as error:
        with error:
            return error.code, error.read(MAX_ANSWER_BYTES)
