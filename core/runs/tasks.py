"""Tasks: programs that need a device and are no runs, such as a chat, a check or an export.

A device has one run or one task at a time. The queue gives devices away (core/runs/queue.py).
"""

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, get_args

import psutil

from core.device import identify, is_alive
from core.job import Problem, SpecError
from core.training.contract.process_id import ProcessId

TaskKind = Literal["chat", "check", "export"]
SECONDS_TO_DIE = 5
"""Time for the system to remove a killed program; the memory of its card is free then."""


@dataclass(frozen=True)
class Task:
    """Program that holds a device and is no run."""

    id: str
    kind: TaskKind
    title: str
    """What it is, for messages: `the chat with demo`."""
    owner: ProcessId
    """Process that has started it, such as the page's server."""
    child: ProcessId | None = None
    """Its own process; None before that has started."""

    @property
    def yields(self) -> bool:
        """True if it is ended as soon as a run or another task wants its device."""
        return self.kind == "chat"

    @property
    def is_held(self) -> bool:
        """True while its program lives, or is about to be started."""
        return is_alive(self.child or self.owner)

    def to_json(self) -> dict[str, object]:
        """Return the task as queue.json holds it."""
        fields: dict[str, object] = {"id": self.id, "kind": self.kind, "title": self.title}
        fields["owner"] = self.owner.to_json()
        if self.child:
            fields["child"] = self.child.to_json()
        return fields

    @classmethod
    def from_json(cls, fields: object) -> Self | None:
        """Return the task in a file, None for a damaged one."""
        if not isinstance(fields, dict):
            return None
        owner, child = (_process(fields.get(name)) for name in ("owner", "child"))
        kind: Any = fields.get("kind")
        if owner is None or kind not in get_args(TaskKind):
            return None
        return cls(str(fields.get("id")), kind, str(fields.get("title")), owner, child)


def without_ended(tasks: Mapping[str, Task]) -> Mapping[str, Task]:
    """Return the tasks that hold their device. End a program whose owner is gone."""
    held = {}
    for device, task in tasks.items():
        if task.is_held and not is_alive(task.owner):
            end(task)
        elif task.is_held:
            held[device] = task
    return held


def end(task: Task) -> None:
    """Kill the program of a task with everything that it has started, and wait until it is gone."""
    if task.child is None or not is_alive(task.child):
        return
    with suppress(psutil.Error):  # it has ended in the meantime
        leader = psutil.Process(task.child.pid)
        for process in (*leader.children(recursive=True), leader):
            with suppress(psutil.Error):
                process.kill()
    deadline = time.monotonic() + SECONDS_TO_DIE
    while is_alive(task.child) and time.monotonic() < deadline:
        time.sleep(0.01)


def this_process() -> ProcessId:
    """Return the identity of this process. Raises SpecError if the system does not tell it."""
    process = identify(os.getpid())
    if process is None:
        raise SpecError(Problem("device", "this process cannot be identified", "try again"))
    return process


def with_child(task: Task, pid: int) -> Task:
    """Return the task once its program has started with this pid."""
    return replace(task, child=identify(pid))


def _process(fields: object) -> ProcessId | None:
    if isinstance(fields, dict):
        return ProcessId.from_json(fields)
    return None
