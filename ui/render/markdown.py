"""Markdown of models as HTML: escaped, with the signs that answers use. Makes no links."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import escape
from textwrap import dedent

FENCE = re.compile(r"^[ \t]*(```+|~~~+)[ \t]*([\w+#.-]*)[^\n]*$", re.MULTILINE)
CODE = re.compile(r"`([^`\n]+)`")
EMPHASIS = (
    (re.compile(r"\*\*\*(?=\S)([^*\n]+)(?<=\S)\*\*\*"), r"<b><i>\1</i></b>"),
    (re.compile(r"\*\*(?=\S)([^*\n]+)(?<=\S)\*\*"), r"<b>\1</b>"),
    (re.compile(r"(?<![\w*])\*(?=\S)([^*\n]+)(?<=\S)\*(?![\w*])"), r"<i>\1</i>"),
    (re.compile(r"~~(?=\S)([^~\n]+)(?<=\S)~~"), r"<s>\1</s>"),
)
"""Signs within a line, in escaped text, and what they become."""
HEADING = re.compile(r"(#{1,6})[ \t]+(.+)")
ITEM = re.compile(r"([ \t]*)(?:[-*+]|(\d{1,4})[.)])[ \t]+(.+)")
QUOTE = re.compile(r" {0,3}> ?(.*)")
RULE = re.compile(r"[ \t]*(?:-[ \t]*){3,}|[ \t]*(?:\*[ \t]*){3,}|[ \t]*(?:_[ \t]*){3,}")
COLUMN = re.compile(r":?-+:?")
"""Cell below the head of a table, which says how its column is aligned."""
BETWEEN_CELLS = re.compile(r"(?<!\\)\|")
TAB_COLUMNS = 4
MAX_DEPTH = 6
"""Lists and quotes within each other; what is deeper is drawn as deep as this."""


@dataclass(frozen=True)
class ListItem:
    """Item of a list."""

    indent: int
    number: str
    """Its number; "" in a list with bullets."""
    lines: list[str]

    @property
    def html(self) -> str:
        return f"<li>{'<br>'.join(map(_inline, self.lines))}"


def markdown_html(text: str) -> str:
    """Return a text with code blocks, headings, lists, tables, quotes, bold, italic and code."""
    html, end = "", 0
    while match := FENCE.search(text, end):
        html += _blocks_html(text[end : match.start()].split("\n"))
        close = re.compile(rf"^[ \t]*{re.escape(match[1])}[ \t]*$", re.MULTILINE)
        closing = close.search(text, match.end())
        code = dedent(text[match.end() : closing.start() if closing else len(text)]).strip("\n")
        html += f"<pre><code>{escape(code)}</code></pre>"
        end = closing.end() if closing else len(text)
    return html + _blocks_html(text[end:].split("\n"))


def _blocks_html(lines: list[str], depth: int = 0) -> str:
    return "".join(_blocks(lines, depth))


def _blocks(lines: list[str], depth: int) -> Iterator[str]:
    """Yield the lines as paragraphs, headings, lists, tables, quotes and rules."""
    at = 0
    while at < len(lines):
        line = lines[at]
        end = at + 1
        if not line.strip():
            pass
        elif RULE.fullmatch(line):
            yield "<hr>"
        elif heading := HEADING.fullmatch(line):
            yield f'<p class="heading">{_inline(heading[2])}</p>'
        elif ITEM.fullmatch(line):
            end, items = _list_at(lines, at)
            yield _list_html(items)
        elif _is_table(lines, at):
            end = _end(lines, at, lambda each: "|" in each)
            yield _table(lines[at:end])
        elif depth < MAX_DEPTH and QUOTE.fullmatch(line):
            end = _end(lines, at, lambda each: bool(QUOTE.fullmatch(each)))
            inner = [QUOTE.sub(r"\1", each) for each in lines[at:end]]
            yield f"<blockquote>{_blocks_html(inner, depth + 1)}</blockquote>"
        else:
            while end < len(lines) and _continues(lines, end, depth):
                end += 1
            yield f"<p>{'<br>'.join(map(_inline, lines[at:end]))}</p>"
        at = end


def _end(lines: list[str], at: int, belongs: Callable[[str], bool]) -> int:
    """Return the place of the first line from here on that does not belong."""
    while at < len(lines) and belongs(lines[at]):
        at += 1
    return at


def _continues(lines: list[str], at: int, depth: int) -> bool:
    """Return True if a line continues the paragraph before it."""
    line = lines[at]
    starts_other = (
        RULE.fullmatch(line)
        or HEADING.fullmatch(line)
        or ITEM.fullmatch(line)
        or (depth < MAX_DEPTH and QUOTE.fullmatch(line))
    )
    return bool(line.strip()) and not starts_other and not _is_table(lines, at)


def _list_at(lines: list[str], at: int) -> tuple[int, list[ListItem]]:
    """Return (the place after a list, its items).

    Blank lines may stand between items. An indented line continues the item before it.
    """
    items: list[ListItem] = []
    end = at
    while at < len(lines):
        line = lines[at]
        item = ITEM.fullmatch(line)
        if item and not RULE.fullmatch(line):
            indent = len(item[1].expandtabs(TAB_COLUMNS))
            items.append(ListItem(indent, item[2] or "", [item[3]]))
        elif line.strip():
            if line[0] not in " \t":
                break
            items[-1].lines.append(line)
        at += 1
        if line.strip():
            end = at
    return end, items


def _list_html(items: list[ListItem]) -> str:
    """Return a list, with lists of indented items within it."""
    html: list[str] = []
    lists: list[ListItem] = []
    """First item of each list that is open."""
    for item in items:
        while len(lists) > 1 and item.indent < lists[-1].indent:
            html.append(_end_of(lists.pop()))
        is_deeper = bool(lists) and item.indent > lists[-1].indent + 1
        if lists and not (is_deeper and len(lists) < MAX_DEPTH):
            if bool(item.number) == bool(lists[-1].number):
                html.append(f"</li>{item.html}")
                continue
            html.append(_end_of(lists.pop()))
        lists.append(item)
        start = f' start="{int(item.number)}"' if item.number not in ("", "1") else ""
        html.append(f"<{_tag(item)}{start}>{item.html}")
    html += [_end_of(each) for each in reversed(lists)]
    return "".join(html)


def _tag(first: ListItem) -> str:
    return "ol" if first.number else "ul"


def _end_of(first: ListItem) -> str:
    return f"</li></{_tag(first)}>"


def _is_table(lines: list[str], at: int) -> bool:
    """Return True for the head of a table, above the line that aligns its columns."""
    if at + 1 >= len(lines) or "|" not in lines[at] or "|" not in lines[at + 1]:
        return False
    columns = _cells(lines[at + 1])
    return all(map(COLUMN.fullmatch, columns)) and len(columns) == len(_cells(lines[at]))


def _table(lines: list[str]) -> str:
    columns = _cells(lines[1])
    rows = [_row("th", _cells(lines[0]), columns)]
    rows += [_row("td", _cells(line), columns) for line in lines[2:]]
    return f'<div class="table"><table>{"".join(rows)}</table></div>'


def _row(tag: str, cells: list[str], columns: list[str]) -> str:
    filled = cells + [""] * len(columns)
    shown = []
    for column, cell in zip(columns, filled, strict=False):
        is_number = column.endswith(":") and not column.startswith(":")
        right = ' class="right"' if is_number else ""
        shown.append(f"<{tag}{right}>{_inline(cell)}</{tag}>")
    return f"<tr>{''.join(shown)}</tr>"


def _cells(line: str) -> list[str]:
    """Return the cells of a line of a table."""
    bare = line.strip().removeprefix("|").removesuffix("|")
    return [cell.strip().replace("\\|", "|") for cell in BETWEEN_CELLS.split(bare)]


def _inline(line: str) -> str:
    """Return one line with bold, italic and code. What is code has no other signs in it."""
    pieces = CODE.split(escape(line.strip()))
    html = []
    for place, piece in enumerate(pieces):
        is_code = place % 2 == 1
        html.append(f"<code>{piece}</code>" if is_code else _emphasis(piece))
    return "".join(html)


def _emphasis(text: str) -> str:
    for pattern, replacement in EMPHASIS:
        text = pattern.sub(replacement, text)
    return text
