"""Answers as HTML: everything is escaped, and a few signs of Markdown are drawn."""

import re

import pytest

from ui.render.markdown import answer_html

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
)
TAGS = {"p", "pre", "code", "b", "i", "ul", "ol", "li", "br", "details", "summary", "div"}


@pytest.mark.parametrize("text", HOSTILE)
def test_no_answer_brings_tags_or_attributes_of_its_own(text: str) -> None:
    html = answer_html(text)
    found = re.findall(r"<(/?)([a-z]+)([^>]*)>", html)
    assert {name for _slash, name, _rest in found} <= TAGS
    assert {rest for _slash, _name, rest in found if rest} <= {
        ' class="thought"',
        ' class="tool-call"',
        ' class="heading"',
    }


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("one\ntwo\n\nthree", "<p>one<br>two</p><p>three</p>"),
        ("**bold** and *thin*", "<p><b>bold</b> and <i>thin</i></p>"),
        ("2 * 3 * 4 and a_b_c", "<p>2 * 3 * 4 and a_b_c</p>"),
        ("`**x**`", "<p><code>**x**</code></p>"),
        ("## Title", '<p class="heading">Title</p>'),
        ("- a\n- b\ntext", "<ul><li>a</li><li>b</li></ul><p>text</p>"),
        ("1. a\n2. b", "<ol><li>a</li><li>b</li></ol>"),
        ("```py\nx < 1\n```\nok", "<pre><code>x &lt; 1</code></pre><p>ok</p>"),
        ("```\nstill written", "<pre><code>still written</code></pre>"),
        ("", ""),
    ],
)
def test_a_few_signs_are_drawn(text: str, html: str) -> None:
    assert answer_html(text) == html


def test_thoughts_are_folded_also_while_they_are_written() -> None:
    opening = '<details class="thought"><summary>'
    assert answer_html("<think>hm</think>Hi").startswith(f"{opening}Thinking</summary><p>hm</p>")
    assert answer_html("<think>hm").startswith(f"{opening}Thinking ...</summary>")


def test_a_tool_call_shows_its_name_and_arguments() -> None:
    html = answer_html('<tool_call>{"name": "lamp", "arguments": {"on": true}}</tool_call>')
    assert "Calls <b>lamp</b>" in html
    assert "&quot;on&quot;: true" in html


def test_a_long_answer_is_drawn_in_time() -> None:
    assert answer_html("*a " * 40_000)
    assert answer_html("`" * 50_000)
    assert answer_html("<think>" * 10_000)
