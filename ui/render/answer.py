"""Answers of models as HTML: thoughts folded, tool calls set apart, the rest as Markdown."""

import json
import re
from collections.abc import Iterator
from html import escape

from ui.render.markdown import markdown_html

MAX_SHOWN = 200_000
"""Characters of an answer that are shown."""
BLOCK = re.compile(
    r"<(?P<tag>think|thinking|thought|reasoning)>(?P<thought>.*?)(?:(?P<end></(?P=tag)>)|\Z)"
    r"|\[THINK\](?P<thought_2>.*?)(?:(?P<end_2>\[/THINK\])|\Z)"
    r"|<tool_call>(?P<call>.*?)(?:</tool_call>|\Z)"
    r"|<\|tool_call\|>(?P<call_2>.*?)(?:<\|/tool_call\|>|\Z)"
    r"|(?:\[TOOL_CALLS\]|<\|python_tag\|>)(?P<call_3>.*)",
    re.DOTALL,
)
"""Thoughts and tool calls as families of models mark them."""
END_OF_THOUGHT = "</think>"
NAMED_CALL = re.compile(r"\s*([\w.-]{1,100})(?:\[CALL_ID\]\w+)?\[ARGS\](.*)", re.DOTALL)
"""Name, and arguments as JSON."""
FUNCTION = re.compile(r"<function=([^>\n]{1,100})>")
ARGUMENTS = ("arguments", "parameters")


def answer_html(text: str) -> str:
    """Return an answer with its thoughts folded and its tool calls set apart."""
    shown = _with_start_of_thought(text[:MAX_SHOWN])
    html, end = "", 0
    for match in BLOCK.finditer(shown):
        html += markdown_html(shown[end : match.start()])
        html += _block(match)
        end = match.end()
    return html + markdown_html(shown[end:])


def _with_start_of_thought(text: str) -> str:
    """Return a text with the mark that a chat template has written before it, if it lacks it."""
    end = text.find(END_OF_THOUGHT)
    if end < 0 or "<think>" in text[:end]:
        return text
    return f"<think>{text}"


def _block(match: re.Match[str]) -> str:
    for group in ("call", "call_2", "call_3"):
        if match[group] is not None:
            return "".join(_tool_calls(match[group]))
    is_whole = bool(match["end"] or match["end_2"])
    thought = (match["thought"] or match["thought_2"] or "").strip()
    if is_whole and not thought:
        return ""  # a model that was asked not to think
    title = "Thinking" if is_whole else "Thinking ..."
    return (
        f'<details class="thought"><summary>{title}</summary>'
        f"<div>{markdown_html(thought)}</div></details>"
    )


def _tool_calls(text: str) -> Iterator[str]:
    """Yield calls by their names, with their arguments as JSON; as they stand if they are none."""
    named = NAMED_CALL.fullmatch(text)
    try:
        if named:
            calls = [{"name": named[1], "arguments": json.loads(named[2])}]
        else:
            calls = json.loads(text)
        shown = [_call(call) for call in (calls if isinstance(calls, list) else [calls])]
    except (ValueError, TypeError, KeyError, StopIteration, RecursionError):
        function = FUNCTION.search(text)
        shown = [(function[1] if function else "a tool", text.strip())]
    for name, body in shown:
        yield (
            f'<div class="tool-call"><p>Calls <b>{escape(name)}</b></p>'
            f"<pre><code>{escape(body)}</code></pre></div>"
        )


def _call(call: object) -> tuple[str, str]:
    """Return (the name, the arguments). Raises TypeError, KeyError for what is no call."""
    if not isinstance(call, dict):
        raise TypeError("a call is an object")
    arguments: object = {}
    for name in ARGUMENTS:
        arguments = call.get(name, arguments)
    return f"{call['name']}", json.dumps(arguments, indent=2, ensure_ascii=False)
