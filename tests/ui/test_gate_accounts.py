"""Who gets in over loopback: programs of our own account and of root, and holders of the token."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from tests.builders.gate_visitor import TOKEN, Visitor
from ui.gate import GatePolicy, accounts, own_account_test

OTHER_ACCOUNT = 54_321
CONNECT = """
import encodings.idna, os, socket, sys  # nothing can be imported as another account
os.setuid(int(sys.argv[1]))
connection = socket.create_connection((sys.argv[2], int(sys.argv[3])))
print("connected", flush=True)
sys.stdin.read()
connection.close()
"""
ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
AS_ROOT = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="only root can act as another account"
)
WAYS = [accounts.ask_kernel, accounts.read_tables]


def visitor_at(is_own: bool) -> Visitor:
    return Visitor(GatePolicy(token=TOKEN, is_own=lambda client, server: is_own))


def test_our_own_account_needs_no_token() -> None:
    assert visitor_at(is_own=True).get("/").status_code == 200


def test_another_account_needs_the_token() -> None:
    visitor = visitor_at(is_own=False)
    assert visitor.get("/").status_code == 401
    assert visitor.get("/", cookie=visitor.log_in()).status_code == 200


@pytest.mark.parametrize("header", ["x-forwarded-for", "x-forwarded-proto", "forwarded"])
def test_a_proxy_of_our_own_account_speaks_for_others(header: str) -> None:
    assert visitor_at(is_own=True).ask("GET", "/", headers={header: "https"}).status_code == 401


def test_an_account_is_only_asked_for_on_this_machine() -> None:
    policy = GatePolicy(token=TOKEN, host="0.0.0.0", is_own=lambda client, server: True)
    answer = Visitor(policy, "http://192.168.1.7:7860").get("/")
    assert answer.status_code == 401


@contextmanager
def connection_of(account: int, host: str) -> Iterator[tuple[Any, Any, subprocess.Popen[str]]]:
    """Connect as this account; yields both ends and the program."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        listener.settimeout(10)
        server = listener.getsockname()[:2]
        command = [sys.executable, "-c", CONNECT, str(account), server[0], str(server[1])]
        with subprocess.Popen(
            command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as program:
            accepted, client = listener.accept()
            with accepted:
                yield client[:2], server, program
                program.communicate()


@ON_LINUX
@pytest.mark.parametrize("owner_of", WAYS)
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_socket_of_ours_is_known(host: str, owner_of: accounts.OwnerOf) -> None:
    with connection_of(os.geteuid(), host) as (client, server, _):
        assert owner_of(client, server) == os.geteuid()


@AS_ROOT
@pytest.mark.parametrize("owner_of", WAYS)
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_socket_of_another_account_is_known(host: str, owner_of: accounts.OwnerOf) -> None:
    with connection_of(OTHER_ACCOUNT, host) as (client, server, _):
        assert owner_of(client, server) == OTHER_ACCOUNT


@AS_ROOT
@pytest.mark.parametrize("owner_of", WAYS)
def test_a_closed_socket_is_not_taken_for_one_of_root(owner_of: accounts.OwnerOf) -> None:
    with connection_of(OTHER_ACCOUNT, "127.0.0.1") as (client, server, program):
        program.communicate()
        assert owner_of(client, server) is None


@ON_LINUX
@pytest.mark.parametrize("owner_of", WAYS)
def test_an_old_address_in_a_new_socket_is_known(owner_of: accounts.OwnerOf) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(socket.AF_INET6) as ours:
        ours.connect(("::ffff:127.0.0.1", listener.getsockname()[1]))
        with listener.accept()[0] as accepted:
            assert owner_of(accepted.getpeername(), accepted.getsockname()) == os.geteuid()


@ON_LINUX
@pytest.mark.parametrize("owner_of", WAYS)
def test_no_connection_has_no_owner(owner_of: accounts.OwnerOf) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert owner_of(listener.getsockname(), ("127.0.0.1", 9)) is None


@ON_LINUX
def test_this_system_tells_accounts_apart() -> None:
    is_own = own_account_test()
    assert is_own is not None
    assert not is_own(("unknown", 0), ("127.0.0.1", 7860))


@AS_ROOT
def test_the_test_refuses_another_account() -> None:
    is_own = own_account_test()
    assert isinstance(is_own, partial)
    with connection_of(OTHER_ACCOUNT, "127.0.0.1") as (client, server, _):
        assert not is_own(client, server)
