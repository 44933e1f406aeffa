"""Answers as HTML: everything is escaped, and the signs of Markdown are drawn."""

import re
import time

import pytest

from ui.render.answer import answer_html

HOSTILE = (
    "<script>alert(1)</script>",
    '<img src=x onerror="alert(1)">',
    "[click](javascript:alert(1))",
    "![picture](https://example.org/a.png)",
    "`<b onclick=x>`",
    "```html\n<iframe src=x>\n```",
    "# <svg onload=x>",
    "- <a href=x>",
    "<think><style>*{}</style></think>",
    '<tool_call>{"name": "<i>", "arguments": {"<b>": "</pre>"}}</tool_call>',
    "<tool_call><script></tool_call>",
    "<tool_call><function=<script>></tool_call>",
    "[TOOL_CALLS]a[ARGS]<script>",
    "> <script>",
    "| <img src=x> | b |\n|---|---|\n| <b onclick=x> | `<i>` |",
    "<script></think><script>",
)
TABLE = (
    '<div class="table"><table><thead><tr><th>a</th><th class="right">b</th></tr></thead>'
    '<tbody><tr><td>1</td><td class="right"></td></tr></tbody></table></div>'
)
MAX_SECONDS = 2.0
# fmt: off
TAGS = frozenset((
    "p", "pre", "code", "strong", "em", "s", "ul", "ol", "li", "br", "hr", "blockquote", "div",
    "table", "thead", "tbody", "tr", "th", "td", "b", "details", "summary",
))
# fmt: on


def drawn(text: str) -> str:
    """Return an answer as HTML without the line breaks between its tags."""
    return re.sub(r"\n*(<(?!/code)[^>]*>)\n*", r"\1", answer_html(text))


@pytest.mark.parametrize("text", HOSTILE)
def test_no_answer_brings_tags_or_attributes_of_its_own(text: str) -> None:
    html = answer_html(text)
    found = re.findall(r"<(/?)([a-z]+)([^>]*)>", html)
    assert {name for _slash, name, _rest in found} <= TAGS
    assert {rest for _slash, _name, rest in found if rest} <= {
        ' class="thought"',
        ' class="tool-call"',
        ' class="heading"',
        ' class="table"',
    }


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("one\ntwo\n\nthree", "<p>one<br>two</p><p>three</p>"),
        ("**bold** and *thin*", "<p><strong>bold</strong> and <em>thin</em></p>"),
        ("2 * 3 * 4 and a_b_c", "<p>2 * 3 * 4 and a_b_c</p>"),
        ("`**x**`", "<p><code>**x**</code></p>"),
        ("## Title", '<p class="heading">Title</p>'),
        ("- a\n- b\n\ntext", "<ul><li>a</li><li>b</li></ul><p>text</p>"),
        ("1. a\n2. b", "<ol><li>a</li><li>b</li></ol>"),
        ("3. a", '<ol start="3"><li>a</li></ol>'),
        (
            "1. a\n   - b\n   - c\n2. d",
            "<ol><li>a<ul><li>b</li><li>c</li></ul></li><li>d</li></ol>",
        ),
        ("- a\n  more", "<ul><li>a<br>more</li></ul>"),
        ("> a\n> b", "<blockquote><p>a<br>b</p></blockquote>"),
        ("a\n\n---\n* * *", "<p>a</p><hr><hr>"),
        ("| a | b |\n|---|--:|\n| 1 |", TABLE),
        ("a | b", "<p>a | b</p>"),
        ("***x*** ~~y~~", "<p><em><strong>x</strong></em> <s>y</s></p>"),
        ("1. a\n   ```py\n   x\n   ```", "<ol><li>a<pre><code>x\n</code></pre></li></ol>"),
        ("```py\nx < 1\n```\nok", "<pre><code>x &lt; 1\n</code></pre><p>ok</p>"),
        ("```\nstill written", "<pre><code>still written</code></pre>"),
        (r"\(x^2\) and \[y\]", r"<p>\(x^2\) and \[y\]</p>"),
        ("    four spaces", "<p>four spaces</p>"),
        ("<b>x</b>", "<p>&lt;b&gt;x&lt;/b&gt;</p>"),
        ("[a](https://example.org)", "<p>[a](https://example.org)</p>"),
        ("<https://example.org>", "<p>&lt;https://example.org&gt;</p>"),
        ("", ""),
    ],
)
def test_signs_are_drawn(text: str, html: str) -> None:
    assert drawn(text) == html


def test_thoughts_are_folded_also_while_they_are_written() -> None:
    opening = '<details class="thought"><summary>'
    thought = f"{opening}Thinking</summary><div><p>hm</p></div></details>"
    assert drawn("<think>hm</think>Hi") == f"{thought}<p>Hi</p>"
    assert drawn("<think>hm").startswith(f"{opening}Thinking ...</summary>")


@pytest.mark.parametrize(
    "text",
    [
        "hm</think>Hi",
        "<thinking>hm</thinking>Hi",
        "<reasoning>hm</reasoning>Hi",
        "[THINK]hm[/THINK]Hi",
    ],
)
def test_thoughts_of_other_families_are_folded(text: str) -> None:
    assert answer_html(text) == answer_html("<think>hm</think>Hi")


def test_a_model_that_was_asked_not_to_think_shows_no_thought() -> None:
    assert drawn("<think>\n\n</think>\n\nHi") == "<p>Hi</p>"


def test_a_tool_call_shows_its_name_and_arguments() -> None:
    html = answer_html('<tool_call>{"name": "lamp", "arguments": {"on": true}}</tool_call>')
    assert "Calls <b>lamp</b>" in html
    assert "&quot;on&quot;: true" in html


LAMP = answer_html('<tool_call>{"name": "lamp", "arguments": {"on": true}}</tool_call>')


@pytest.mark.parametrize(
    "text",
    [
        '[TOOL_CALLS] [{"name": "lamp", "arguments": {"on": true}}]',
        '[TOOL_CALLS]lamp[ARGS]{"on": true}',
        '<|tool_call|>[{"name": "lamp", "arguments": {"on": true}}]<|/tool_call|>',
        '<|python_tag|>{"name": "lamp", "parameters": {"on": true}}',
    ],
)
def test_tool_calls_of_other_families_are_shown_alike(text: str) -> None:
    assert answer_html(text) == LAMP


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("<tool_call><function=lamp><parameter=on>1</parameter></function></tool_call>", "lamp"),
        ('<tool_call>["lamp"]</tool_call>', "a tool"),
        ("<tool_call>null</tool_call>", "a tool"),
        ('<tool_call>{"name": 1', "a tool"),
    ],
)
def test_a_call_that_is_no_json_stands_as_it_is(text: str, name: str) -> None:
    assert f"Calls <b>{name}</b>" in answer_html(text)


@pytest.mark.parametrize(
    "sign",
    ["<think>", "> ", "- ", "  a\n", "|a", "```\n", "\n1. ", "***a ", "a|b\n|-|-|\n", "![", "`a``"],
)
def test_a_long_answer_of_any_sign_is_drawn_in_time(sign: str) -> None:
    started = time.process_time()  # another program that is busy is no fault
    assert answer_html("- x\n" + sign * 6_000)
    assert time.process_time() - started < MAX_SECONDS


def test_a_long_answer_is_drawn_in_time() -> None:
    assert answer_html("*a " * 40_000)
    assert answer_html("`" * 50_000)
    assert answer_html("<think>" * 10_000)
