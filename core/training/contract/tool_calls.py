"""Tools that a row offers and calls of them, as vendors write them, in the form of OpenAI.

Standard library only. Reads the forms of OpenAI (old and new), Anthropic, Bedrock and Gemini.
"""

import json
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from .messages import Fault, json_type
from .row_columns import parse_text

Tool = dict[str, Any]
Call = dict[str, Any]
CALL_FIX = 'write [{"type": "function", "function": {"name": "...", "arguments": {...}}}]'
TOOLS_FIX = 'give a list of {"type": "function", "function": {"name": "...", ...}}'
PARAMETER_KEYS = ("parameters", "input_schema", "inputSchema")
"""Names of the JSON schema of a tool's arguments, by vendor."""
PROTOCOL_KEYS = frozenset(("type", "cache_control"))
"""Keys of a vendor's own protocol."""
ARGUMENT_KEYS = ("arguments", "parameters", "input", "args")
"""Names of the arguments of a call, by vendor."""
CONTAINERS = frozenset((dict, list))
SCHEMA_NULLS = frozenset(("default", "const"))
"""Keys of a JSON schema whose null says something."""
BUNDLES: Mapping[str, str] = MappingProxyType(
    {"functionDeclarations": "Gemini", "function_declarations": "Gemini", "tools": "Bedrock"}
)
"""Key of an object that holds several tools -> vendor that writes so."""


def read_tools(value: Any, name: str) -> tuple[list[Tool], list[Fault]]:
    """Return (the tools of a row, what is wrong with them). They may be JSON in a text."""
    if are_plain_tools(value):
        return value, []
    if _are_canonical(value):
        try:
            return _without_nulls(value, SCHEMA_NULLS), []
        except RecursionError:
            return [], [Fault(name, "not_tool", "is nested too deeply", TOOLS_FIX)]
    found = parse_text(value) if isinstance(value, str) else value
    if isinstance(found, dict):
        found = [found]
    if not isinstance(found, list) or not all(isinstance(tool, dict | str) for tool in found):
        message = f"is {json_type(value)}, not a list of objects"
        return [], [Fault(name, "wrong_kind", message, TOOLS_FIX)]
    tools: list[Tool] = []
    faults = []
    for index, written in enumerate(found):
        some = list(_tools_of(written))
        tools += some
        if not some:
            faults.append(Fault(f"{name}[{index}]", "not_tool", "has no name", TOOLS_FIX))
    return tools, faults


def _are_canonical(tools: Any) -> bool:
    """Return whether tools are in the form of OpenAI."""
    if type(tools) is not list:
        return False
    for tool in tools:
        function = tool.get("function") if type(tool) is dict else None
        if type(function) is not dict or not _is_name(function.get("name")):
            return False
    return True


def are_plain_tools(tools: Any) -> bool:
    """Return whether tools are as they are trained on, so that nothing is to do."""
    return _are_canonical(tools) and not holds_nulls(tools)


def tool_names(tools: list[Tool]) -> frozenset[str]:
    """Return the names of tools."""
    return frozenset(str(tool["function"]["name"]) for tool in tools)


def _tools_of(written: Any) -> Iterator[Tool]:
    """Yield the tools that one element of a list stands for; none if it names no function."""
    if isinstance(written, str):
        written = parse_text(written)
    if not isinstance(written, dict):
        return
    for key in BUNDLES:
        if isinstance(written.get(key), list):
            for each in written[key]:
                yield from _tools_of(each)
            return
    function = written.get("function")
    if isinstance(function, dict) and _is_name(function.get("name")):
        yield written
        return
    function = written.get("toolSpec", written)
    if isinstance(function, dict) and _is_name(function.get("name")):
        yield {"type": "function", "function": _as_function(function)}


def _as_function(written: Mapping[str, Any]) -> dict[str, Any]:
    """Return a function as OpenAI describes one."""
    function = {}
    for key, value in written.items():
        if key in PARAMETER_KEYS and isinstance(value, dict):
            # Bedrock wraps the schema in {"json": ...}.
            function["parameters"] = value.get("json", value)
        elif key not in PROTOCOL_KEYS and value is not None:
            function[key] = value
    return function


def read_calls(value: Any, name: str) -> tuple[list[Call], list[Fault]]:
    """Return (the calls of a message, what is wrong with them)."""
    written = parse_text(value) if isinstance(value, str) else value
    if isinstance(written, dict):
        written = [written]
    if not isinstance(written, list):
        message = f"is {json_type(value)}, not a list of calls"
        return [], [Fault(name, "wrong_kind", message, CALL_FIX)]
    calls: list[Call] = []
    faults = []
    for index, each in enumerate(written):
        call = _read_call(each, f"{name}[{index}]")
        if isinstance(call, Fault):
            faults.append(call)
        else:
            calls.append(call)
    return calls, faults


def are_plain_calls(calls: Any) -> bool:
    """Return whether calls are as they are trained on, so that nothing is to do."""
    if type(calls) is not list:
        return False
    for call in calls:
        function = call.get("function") if type(call) is dict else None
        if type(function) is not dict or type(function.get("arguments")) is not dict:
            return False
        if type(function.get("name")) is not str or not function["name"]:
            return False
        if holds_nulls(function["arguments"]):
            return False
    return True


def _read_call(written: Any, place: str) -> Call | Fault:
    if not isinstance(written, dict):
        return Fault(place, "not_call", "names no function", CALL_FIX)
    wrapped = written.get("function")
    inner = wrapped if isinstance(wrapped, dict) else written
    name = inner.get("name")
    if not isinstance(name, str) or not name:
        return Fault(place, "not_call", "names no function", CALL_FIX)
    key = _argument_key(inner)
    if key is None:
        fix = 'write "arguments": {...}, or {} if there are none'
        return Fault(place, "not_arguments", f"calls {name} without arguments", fix)
    given = inner[key]
    arguments = _read_arguments(given)
    if arguments is None:
        return Fault(place, "not_arguments", "its arguments are no JSON object", CALL_FIX)
    if inner is wrapped and arguments is given:
        return written
    call: Call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    if written.get("id"):
        call["id"] = written["id"]
    return call


def _argument_key(inner: Mapping[str, Any]) -> str | None:
    for key in ARGUMENT_KEYS:
        if key in inner:
            return key
    return None


def _read_arguments(value: Any) -> dict[str, Any] | None:
    """Return the arguments of a call, which OpenAI writes as JSON text; None if they are none."""
    if value is None or value == "":
        return {}
    try:
        if isinstance(value, str):
            value = json.loads(value)
        elif isinstance(value, dict) and holds_nulls(value):
            value = _without_nulls(value)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def holds_nulls(value: dict[str, Any] | list[Any]) -> bool:
    """Return whether an object at any depth has a key with null."""
    pending: list[Any] = [value]
    for each in pending:  # to which the loop appends
        is_object = type(each) is dict
        inside = each.values() if is_object else each
        for one in inside:
            if one is None and is_object:
                return True
            if type(one) in CONTAINERS:
                pending.append(one)
    return False


def _without_nulls(value: Any, kept: frozenset[str] = frozenset()) -> Any:
    """Return a value without the keys of objects that hold null.

    In an Arrow table each object has the keys of all others of its column, with null. What is
    written as JSON text stays as it is.
    """
    if isinstance(value, dict):
        return {
            key: _without_nulls(each, kept)
            for key, each in value.items()
            if each is not None or key in kept
        }
    if isinstance(value, list):
        return [_without_nulls(each, kept) for each in value]
    return value


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value)
