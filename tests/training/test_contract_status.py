"""Status and typed JSON: what is read of files that other versions wrote, or that are damaged."""

import json
from dataclasses import dataclass
from typing import Literal

import pytest

from core.training.contract.process_id import ProcessId
from core.training.contract.status import Progress, Status
from core.training.contract.typed_json import WrongType, value_as


@dataclass(frozen=True)
class Pair:
    one: int
    other: str


SOUND = [
    (bool, True, True),
    (int, 3, 3),
    (int, 3.0, 3),
    (float, 3, 3.0),
    (str, "a", "a"),
    (Literal["a", "b"], "b", "b"),
    (int | None, None, None),
    (int | None, 3, 3),
    (tuple[str, ...], ["a", "b"], ("a", "b")),
    (Pair, {"one": 1, "other": "a"}, Pair(1, "a")),
]
WRONG = [
    (bool, 1),
    (int, True),
    (int, 3.5),
    (int, "3"),
    (float, float("nan")),
    (float, 1e301),
    (float, 10**400),
    (str, 3),
    (Literal["a", "b"], "c"),
    (int | None, "3"),
    (tuple[str, ...], "ab"),
    (tuple[str, ...], ["a", 3]),
    (Pair, {"one": 1}),
    (Pair, [1, "a"]),
]


@pytest.mark.parametrize(("declared", "value", "expected"), SOUND)
def test_a_value_of_the_declared_type_is_read(
    declared: object, value: object, expected: object
) -> None:
    assert value_as(declared, value) == expected


@pytest.mark.parametrize(("declared", "value"), WRONG)
def test_a_value_of_another_type_is_refused(declared: object, value: object) -> None:
    with pytest.raises(WrongType):
        value_as(declared, value)


def test_a_status_is_read_back_as_it_was_written() -> None:
    status = Status(
        pid=7,
        boot_id="a",
        state="running",
        progress=Progress("downloading", 1.0, None, "B"),
        notes=("one",),
        resumed_at=(3, 9),
        phase_peak_bytes={"load": 5},
    )
    assert Status.from_json(json.loads(json.dumps(status.to_json()))) == status


@pytest.mark.parametrize(
    "fields",
    [
        {"state": "napping"},
        {"step": "many"},
        {"phase_peak_bytes": {"load": "much"}},
        {"notes": "one"},
        {"progress": {"what": "tokenizing"}},
        {"a_field_of_a_newer_version": 1},
    ],
)
def test_damaged_and_unknown_fields_are_left_out(fields: dict[str, object]) -> None:
    assert Status.from_json({"max_steps": 9, **fields}) == Status(max_steps=9)


def test_a_status_names_the_process_that_wrote_it() -> None:
    status = Status(pid=7, pid_start_time=2.5, boot_id="a")
    assert status.process == ProcessId(7, 2.5, "a")


def test_an_empty_status_names_no_process() -> None:
    assert Status().process is None
