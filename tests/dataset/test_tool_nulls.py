"""Nulls that a table puts into the arguments of tool calls and into the schemas of tools."""

import json
from typing import Any

import pytest

from core.training.contract.row_reader import read_row


def read(arguments: object, tools: object = None) -> dict[str, Any]:
    """Return the row that is trained on, of a conversation with one call."""
    call = {"type": "function", "function": {"name": "weather", "arguments": arguments}}
    turns = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    row: dict[str, Any] = read_row(json.dumps({"messages": turns, "tools": tools}).encode(), "sft")
    return row


def arguments_of(row: dict[str, Any]) -> object:
    return row["messages"][1]["tool_calls"][0]["function"]["arguments"]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ({"town": "Oslo", "zone": None}, {"town": "Oslo"}),
        ({"place": {"town": "Oslo", "zone": None}}, {"place": {"town": "Oslo"}}),
        ({"days": [{"day": 1, "hour": None}, None]}, {"days": [{"day": 1}, None]}),
        ('{"town": "Oslo", "zone": null}', {"town": "Oslo", "zone": None}),
        ({"zone": None}, {}),
    ],
)
def test_nulls_of_a_table_are_no_arguments(written: object, expected: object) -> None:
    assert arguments_of(read(written)) == expected


def test_nulls_of_a_table_are_no_parameters_of_a_tool() -> None:
    properties = {"town": {"type": "string", "default": None, "enum": None}, "zone": None}
    tool = {"name": "weather", "parameters": {"type": "object", "properties": properties}}
    row = read({"town": "Oslo"}, [{"type": "function", "function": tool}])
    kept = json.loads(row["tools"])[0]["function"]["parameters"]["properties"]
    assert kept == {"town": {"type": "string", "default": None}}
