"""Uploads that end early, stay unused or find the disk full leave nothing behind."""

import asyncio
import errno
import os
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from starlette.types import Message, Receive, Scope, Send

from core.device import identify
from core.training.contract.files import write_json
from tests.builders.gate_visitor import Visitor
from ui.gate import UPLOAD_PATH, Gate, GatePolicy, uploads
from ui.scratch import make_scratch

SCOPE: Scope = {
    "type": "http",
    "method": "POST",
    "path": UPLOAD_PATH,
    "headers": [(b"host", b"localhost")],
}


class Store:
    """App that stores a body as Gradio does: a file while it arrives, a folder once it has."""

    def __init__(self, folder: Path):
        self.folder = folder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        arriving = self.folder / "tmpabc"
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionError("the client has gone")
            with arriving.open("ab") as file:
                file.write(message["body"])
            if not message["more_body"]:
                break
        (self.folder / "digest").mkdir()
        arriving.rename(self.folder / "digest" / "rows.jsonl")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"stored"})


def statuses(gate: Gate, messages: AsyncIterator[Message]) -> list[int]:
    """Return the statuses that a gate answers to the messages of one request."""
    sent: list[int] = []

    async def send(message: Message) -> None:
        if "status" in message:
            sent.append(message["status"])

    async def receive() -> Message:
        return await anext(messages)

    asyncio.run(gate(SCOPE, receive, send))
    return sent


async def piece(more: bool = True) -> AsyncIterator[Message]:
    yield {"type": "http.request", "body": b"x" * 100, "more_body": more}
    if more:
        yield {"type": "http.disconnect"}


def test_an_upload_is_stored(tmp_path: Path) -> None:
    gate = Gate(Store(tmp_path), GatePolicy(upload_folder=tmp_path))
    assert statuses(gate, piece(more=False)) == [200]
    assert (tmp_path / "digest" / "rows.jsonl").stat().st_size == 100


def test_a_half_sent_upload_is_removed_without_a_traceback(tmp_path: Path) -> None:
    gate = Gate(Store(tmp_path), GatePolicy(upload_folder=tmp_path))
    assert statuses(gate, piece()) == []
    assert list(tmp_path.iterdir()) == []


def test_an_upload_that_stops_coming_is_given_up(tmp_path: Path) -> None:
    async def stopping() -> AsyncIterator[Message]:
        yield {"type": "http.request", "body": b"x", "more_body": True}
        await asyncio.sleep(60)

    policy = GatePolicy(upload_folder=tmp_path, pause_seconds=0.1)
    begun = time.monotonic()
    assert statuses(Gate(Store(tmp_path), policy), stopping()) == [408]
    assert time.monotonic() - begun < 10
    assert list(tmp_path.iterdir()) == []


def test_one_upload_that_ends_early_leaves_another_alone(tmp_path: Path) -> None:
    async def both() -> list[str]:
        folder = uploads.Uploads(tmp_path)
        (tmp_path / "tmpabc").write_text("arriving")
        with folder.arriving():
            with folder.arriving():
                pass
            return [path.name for path in tmp_path.iterdir()]

    assert asyncio.run(both()) == ["tmpabc"]
    assert list(tmp_path.iterdir()) == []


def test_unused_uploads_are_removed_after_some_time(tmp_path: Path) -> None:
    for name, age in (("old", 7200), ("new", 60)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows.jsonl").write_text("{}")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    uploads.remove_older(tmp_path, uploads.UNUSED_SECONDS)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_an_upload_that_leaves_no_room_is_refused_in_a_sentence(tmp_path: Path) -> None:
    visitor = Visitor(GatePolicy(upload_folder=tmp_path, max_upload_bytes=2**80))
    answer = visitor.ask("POST", UPLOAD_PATH, headers={"content-length": str(2**70)})
    assert answer.status_code == 507
    assert answer.text.startswith("The disk is nearly full:")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_becomes_full_is_a_sentence(tmp_path: Path, number: int) -> None:
    async def full(scope: Scope, receive: Receive, send: Send) -> None:
        raise OSError(number, "no room")

    gate = Gate(full, GatePolicy(upload_folder=tmp_path))
    assert statuses(gate, piece(more=False)) == [507]


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    left = make_scratch(tmp_path)
    (left / "rows.jsonl").write_text("{}")
    process = identify(os.getpid())
    assert process is not None
    ended = process.to_json() | {"pid": 4_000_000, "host": socket.gethostname()}
    write_json(left / "process.json", ended)
    make_scratch(tmp_path)
    assert not left.exists()


def test_the_folder_of_another_living_process_stays(tmp_path: Path) -> None:
    first, second = make_scratch(tmp_path), make_scratch(tmp_path)
    assert first != second
    assert first.is_dir()


def test_the_folder_of_a_process_elsewhere_stays(tmp_path: Path) -> None:
    elsewhere = make_scratch(tmp_path)
    fields = {"pid": 4_000_000, "pid_start_time": 1.0, "boot_id": "x", "host": "another-machine"}
    write_json(elsewhere / "process.json", fields)
    make_scratch(tmp_path)
    assert elsewhere.is_dir()


def test_old_files_without_an_owner_are_swept(tmp_path: Path) -> None:
    for name, age in (("old.zip", 7200), ("new.zip", 1)):
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    kept = make_scratch(tmp_path).parent
    assert not (kept / "old.zip").exists()
    assert (kept / "new.zip").exists()
