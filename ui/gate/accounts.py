"""Account of the other end of a connection on this machine. Linux only: asks the kernel."""

import os
import socket
import struct
import sys
from collections.abc import Callable, Mapping
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Final

from ui.gate.policy import Ends

OwnerOf = Callable[[Ends, Ends], int | None]
"""Returns the account that has the client's end of a connection (client, server), if one does."""
TABLES: Final = (Path("/proc/self/net/tcp"), Path("/proc/self/net/tcp6"))
ESTABLISHED: Final = 1
"""Only an established connection has a known owner. The kernel lists a socket that its program has
closed under account 0, which is root."""
UNKNOWN_ACCOUNT: Final = 65534
"""Stands for every account that this one's user namespace has no number for."""
ATTEMPTS: Final = 2
"""A table that changes while it is read may leave a line out."""
NETLINK_SOCK_DIAG: Final = 4
SOCK_DIAG_BY_FAMILY: Final = 20
NLM_F_REQUEST: Final = 1
HEADER: Final = struct.Struct("=IHHII")
"""nlmsghdr: length, type, flags, sequence, port."""
QUESTION: Final = struct.Struct("=BBBBI")
"""inet_diag_req_v2 up to its socket id: family, protocol, extensions, padding, states."""
ANSWER: Final = struct.Struct("=BBBB48sIIIII")
"""inet_diag_msg: family, state, timer, retransmits, socket id, expires, queues, account, inode."""
NO_COOKIE: Final = b"\xff" * 8


GUEST_HEADER: Final = "x-tailor-guest"
"""Header that the gate adds to what it lets in by the token, not by the account."""


def is_guest(headers: Mapping[str, str]) -> bool:
    """Return whether a request that the gate let in may come from another account."""
    return GUEST_HEADER in headers


def own_account_test() -> Callable[[Ends, Ends], bool] | None:
    """Return a function that tells whether a client's socket is ours or root's.

    None if this system does not tell: it is tried on a connection of our own.
    """
    if sys.platform != "linux":
        return None
    # The tables take 20 ms to read on a machine with much memory, the question to the kernel none.
    for owner_of in (ask_kernel, read_tables):
        if _knows_this_account(owner_of):
            return partial(_is_own_account, owner_of)
    return None


def _is_own_account(owner_of: OwnerOf, client: Ends, server: Ends) -> bool:
    try:
        owner = owner_of(client, server)
    except (OSError, ValueError):  # ValueError: an end without an address
        return False
    return owner in {0, os.geteuid()} - {UNKNOWN_ACCOUNT}


def _knows_this_account(owner_of: OwnerOf) -> bool:
    try:
        with (
            socket.create_server(("127.0.0.1", 0)) as listener,
            socket.create_connection(listener.getsockname()) as ours,
        ):
            return owner_of(ours.getsockname(), listener.getsockname()) == os.geteuid()
    except OSError:
        return False


def ask_kernel(client: Ends, server: Ends) -> int | None:
    """Return who has the client's end, as sock_diag(7) tells. Raises OSError."""
    connection = _socket_id(client, server)
    family = socket.AF_INET if connection[8:20] == bytes(12) else socket.AF_INET6
    question = QUESTION.pack(family, socket.IPPROTO_TCP, 0, 0, 1 << ESTABLISHED)
    question += connection + bytes(4) + NO_COOKIE
    length = HEADER.size + len(question)
    header = HEADER.pack(length, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, 0, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, NETLINK_SOCK_DIAG) as kernel:
        kernel.settimeout(1)
        kernel.sendto(header + question, (0, 0))
        reply = kernel.recv(4096)
    kind = HEADER.unpack_from(reply)[1]
    if kind != SOCK_DIAG_BY_FAMILY or len(reply) < HEADER.size + ANSWER.size:
        return None  # an error: there is no such connection
    _, state, _, _, found, *_, account, inode = ANSWER.unpack_from(reply, HEADER.size)
    # Without the connection the kernel answers with a listener at the client's address.
    if state != ESTABLISHED or not inode or found[:4] != connection[:4]:
        return None
    return int(account)


def _socket_id(client: Ends, server: Ends) -> bytes:
    """Return the ports and the addresses as inet_diag_sockid begins, IPv4 as four bytes."""
    packed = b""
    for name, _port in (client, server):
        address = ip_address(name.partition("%")[0])
        mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
        packed += (mapped or address).packed.ljust(16, b"\0")
    return struct.pack(">HH", client[1], server[1]) + packed


def read_tables(client: Ends, server: Ends) -> int | None:
    """Return who has the client's end, as /proc/net/tcp and tcp6 list it, see proc(5)."""
    for table in TABLES * ATTEMPTS:
        try:
            lines = table.read_text(encoding="ascii", errors="replace")
        except OSError:
            continue
        for pair in _pairs(client, server):
            _, is_listed, rest = lines.partition(f": {pair} {ESTABLISHED:02} ")
            # queues, timer, retransmits, account, timeout, inode
            fields = rest.partition("\n")[0].split()
            if is_listed and len(fields) > 5 and fields[5] != "0":
                return int(fields[3])
    return None


def _pairs(client: Ends, server: Ends) -> list[str]:
    """Return how the tables write the two ends, as addresses of 4 and of 16 bytes."""
    ends = [(ip_address(end[0].partition("%")[0]), end[1]) for end in (client, server)]
    pairs = []
    for is_long in (False, True):
        written = [_written(address, port, is_long) for address, port in ends]
        if all(written):
            pairs.append(" ".join(written))
    return pairs


def _written(address: IPv4Address | IPv6Address, port: int, is_long: bool) -> str:
    """Return `ADDRESS:PORT` in hexadecimal, each 4 bytes a number in this machine's byte order."""
    packed = address.packed
    if is_long and len(packed) == 4:
        packed = IPv6Address(f"::ffff:{address}").packed
    elif not is_long and len(packed) == 16:
        mapped = IPv6Address(packed).ipv4_mapped
        if mapped is None:
            return ""
        packed = mapped.packed
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    return "".join(f"{word:08X}" for word in words) + f":{port:04X}"
