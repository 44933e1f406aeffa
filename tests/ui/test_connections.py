"""What visitors can hold open at a server: a trivial app behind the guard, and raw sockets."""

import logging
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
import uvicorn
from starlette.responses import PlainTextResponse

from ui.connections import OncePerKind, guard, raise_file_limit

MAX_CONNECTIONS = 20
HEAD_SECONDS = 1.0


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Serve `hello` with few connections; return the port."""
    config = uvicorn.Config(PlainTextResponse("hello"), port=0, log_level="critical")
    server = uvicorn.Server(config)
    config.load()
    guard(server, MAX_CONNECTIONS, HEAD_SECONDS)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join()


def get(port: int) -> str:
    return httpx.get(f"http://127.0.0.1:{port}/", trust_env=False).text


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: "])
def test_a_connection_that_asks_for_nothing_is_closed(port: int, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), 10) as idle:
        idle.sendall(sent)
        begun = time.monotonic()
        assert idle.recv(1) == b""
        assert time.monotonic() - begun < HEAD_SECONDS + 5


def test_a_head_that_trickles_gets_no_more_time(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), 10) as slow:
        begun = time.monotonic()
        with pytest.raises(ConnectionError):
            while True:
                slow.sendall(b"G")
                time.sleep(0.1)
        assert time.monotonic() - begun < HEAD_SECONDS + 5


def test_a_half_sent_second_head_is_closed_too(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), 10) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        received = b""
        while not received.endswith(b"hello"):
            received += client.recv(1000)
        client.sendall(b"GET / HTTP/1.1\r\n")
        assert client.recv(1) == b""


def test_many_idle_connections_keep_no_visitor_out(port: int) -> None:
    idle = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(3 * MAX_CONNECTIONS)]
    try:
        assert get(port) == "hello"
    finally:
        for each in idle:
            each.close()


def test_a_visitor_keeps_a_connection_between_requests(port: int) -> None:
    with httpx.Client(trust_env=False) as client:
        for _ in range(3):
            assert client.get(f"http://127.0.0.1:{port}/").text == "hello"
            time.sleep(HEAD_SECONDS / 2)


def test_there_are_more_open_files_than_connections() -> None:
    assert raise_file_limit() >= 1024


def test_one_kind_of_line_does_not_fill_the_log() -> None:
    now = [0.0]
    once = OncePerKind(lambda: now[0])
    record = logging.LogRecord("uvicorn.error", logging.WARNING, "", 1, "Invalid %s", ("x",), None)
    num_printed = sum(once.filter(logging.makeLogRecord(vars(record))) for _ in range(1000))
    assert num_printed == 5
    other = logging.LogRecord("uvicorn.error", logging.WARNING, "", 1, "Another", (), None)
    assert once.filter(other)
    now[0] = 61.0
    assert once.filter(record)
