"""Ask a web server of a cluster, within a time that holds for the whole answer. Knows no cluster.

A server that sends a byte now and then, or a name that is not resolved, holds up one thread only.
"""

from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

from core.job.places import TooLate, call_in_time

OK = 200
MAX_ANSWER_BYTES = 2**20


class StayHere(HTTPRedirectHandler):
    """Handler that follows no redirect, which would take the token elsewhere."""

    def redirect_request(self, *_arguments: object) -> None:
        """Return nothing, so that the answer counts as an error."""


def answer_to(request: Request, seconds: float) -> tuple[int, bytes]:
    """Return the code of an answer and what it says, at most MAX_ANSWER_BYTES of it.

    Raises TimeoutError, also while an earlier question to the host is not over. Raises OSError,
    HTTPException, ValueError as urllib does.
    """
    try:
        return call_in_time(lambda: _answer(request, seconds), seconds, request.host)
    except TooLate:
        raise TimeoutError(f"no whole answer within {seconds:g} s") from None


def _answer(request: Request, seconds: float) -> tuple[int, bytes]:
    # A cluster is reached directly: a proxy for the web would see its token.
    opener = build_opener(ProxyHandler({}), StayHere())
    try:
        with opener.open(request, timeout=seconds) as answer:
            return OK, answer.read(MAX_ANSWER_BYTES)
    except HTTPError as error:
        with error:
            return error.code, error.read(MAX_ANSWER_BYTES)
