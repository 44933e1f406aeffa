"""Answers of models as HTML: escaped, with a few signs of Markdown. Makes no links."""

import json
import re
from collections.abc import Iterator
from html import escape

FENCE = re.compile(r"^ {0,3}(```+|~~~+)[ \t]*([\w+#.-]*)[^\n]*$", re.MULTILINE)
BLOCK = re.compile(
    r"<think>(?P<thought>.*?)(?:</think>|\Z)|<tool_call>(?P<call>.*?)(?:</tool_call>|\Z)",
    re.DOTALL,
)
CODE = re.compile(r"`([^`\n]+)`")
EMPHASIS = (
    (re.compile(r"\*\*(?=\S)([^*\n]+)(?<=\S)\*\*"), r"<b>\1</b>"),
    (re.compile(r"(?<![\w*])\*(?=\S)([^*\n]+)(?<=\S)\*(?![\w*])"), r"<i>\1</i>"),
)
"""Signs within a line, in escaped text, and what they become."""
HEADING = re.compile(r"(#{1,6})[ \t]+(.+)")
ITEM = re.compile(r"[ \t]*(?:[-*+]|(\d{1,4})[.)])[ \t]+(.+)")
MAX_SHOWN = 200_000
"""Characters of an answer that are shown."""


def answer_html(text: str) -> str:
    """Return an answer with its thoughts folded and its tool calls set apart."""
    shown, html, end = text[:MAX_SHOWN], "", 0
    for match in BLOCK.finditer(shown):
        html += markdown_html(shown[end : match.start()])
        html += _thought(match) if match["call"] is None else _tool_call(match["call"])
        end = match.end()
    return html + markdown_html(shown[end:])


def markdown_html(text: str) -> str:
    """Return a text with code blocks, headings, lists, bold, italic and code."""
    html, end = "", 0
    while match := FENCE.search(text, end):
        html += _paragraphs(text[end : match.start()])
        close = re.compile(rf"^ {{0,3}}{re.escape(match[1])}[ \t]*$", re.MULTILINE)
        closing = close.search(text, match.end())
        code = text[match.end() : closing.start() if closing else len(text)].strip("\n")
        html += f"<pre><code>{escape(code)}</code></pre>"
        end = closing.end() if closing else len(text)
    return html + _paragraphs(text[end:])


def _thought(match: re.Match[str]) -> str:
    is_open = not match[0].endswith("</think>")
    title = "Thinking ..." if is_open else "Thinking"
    body = markdown_html(match["thought"])
    return f'<details class="thought"><summary>{title}</summary>{body}</details>'


def _tool_call(text: str) -> str:
    """Return a call by its name, with its arguments as JSON; as it stands if it is no JSON."""
    name, body = "a tool", text.strip()
    try:
        call = json.loads(text)
        name = f"{call['name']}"
        body = json.dumps(call.get("arguments", {}), indent=2, ensure_ascii=False)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    return (
        f'<div class="tool-call"><p>Calls <b>{escape(name)}</b></p>'
        f"<pre><code>{escape(body)}</code></pre></div>"
    )


def _paragraphs(text: str) -> str:
    """Return lines as paragraphs, headings and lists."""
    return "".join(_blocks(text.split("\n")))


def _blocks(lines: list[str]) -> Iterator[str]:
    paragraph: list[str] = []
    items: list[str] = []
    tag = "ul"
    for line in [*lines, ""]:
        item, heading = ITEM.fullmatch(line), HEADING.fullmatch(line)
        is_text = bool(line.strip()) and not item and not heading
        if paragraph and not is_text:
            yield f"<p>{'<br>'.join(map(_inline, paragraph))}</p>"
            paragraph = []
        if items and not item:
            yield f"<{tag}>{''.join(items)}</{tag}>"
            items = []
        if item:
            if not items:
                tag = "ol" if item[1] else "ul"
            items.append(f"<li>{_inline(item[2])}</li>")
        elif heading:
            yield f'<p class="heading">{_inline(heading[2])}</p>'
        elif is_text:
            paragraph.append(line)


def _inline(line: str) -> str:
    """Return one line with bold, italic and code. What is code has no other signs in it."""
    pieces = CODE.split(escape(line))
    html = []
    for place, piece in enumerate(pieces):
        is_code = place % 2 == 1
        html.append(f"<code>{piece}</code>" if is_code else _emphasis(piece))
    return "".join(html)


def _emphasis(text: str) -> str:
    for pattern, replacement in EMPHASIS:
        text = pattern.sub(replacement, text)
    return text
