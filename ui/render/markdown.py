"""Markdown of models as HTML, with markdown-it. Escapes all tags; makes no links or pictures."""

from collections.abc import Sequence
from html import escape
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token

# fmt: off
NOT_DRAWN = (
    "autolink", "code", "escape", "html_block", "html_inline", "image", "link", "reference",
)
# fmt: on
"""Signs that stay as they are written. A link could lead anywhere, and a picture would be fetched;
lines indented by four are rarely meant as code, and backslashes more often as a formula."""
ALSO_DRAWN = ("strikethrough", "table")
RIGHT = "text-align:right"


class AnswerRenderer(RendererHTML):
    """HTML of an answer in a page that has headings, a width and colours of its own."""

    def heading_open(self, *_of_markdown: Any) -> str:
        return '<p class="heading">'

    def heading_close(self, *_of_markdown: Any) -> str:
        return "</p>"

    def table_open(self, *_of_markdown: Any) -> str:
        return '<div class="table"><table>'

    def table_close(self, *_of_markdown: Any) -> str:
        return "</table></div>"

    def th_open(self, tokens: Sequence[Token], place: int, *_of_markdown: Any) -> str:
        return _cell(tokens[place])

    def td_open(self, tokens: Sequence[Token], place: int, *_of_markdown: Any) -> str:
        return _cell(tokens[place])

    def fence(self, tokens: Sequence[Token], place: int, *_of_markdown: Any) -> str:
        """Return a block of code without the name of its language, which nothing here colours."""
        return f"<pre><code>{escape(tokens[place].content)}</code></pre>"


def _cell(cell: Token) -> str:
    is_right = cell.attrGet("style") == RIGHT
    return f'<{cell.tag} class="right">' if is_right else f"<{cell.tag}>"


MARKDOWN = (
    MarkdownIt(
        "commonmark",
        {"html": False, "breaks": True, "xhtmlOut": False},
        renderer_cls=AnswerRenderer,
    )
    .enable(list(ALSO_DRAWN))
    .disable(list(NOT_DRAWN))
)


def markdown_html(text: str) -> str:
    """Return a text with code blocks, headings, lists, tables, quotes, bold, italic and code."""
    html: str = MARKDOWN.render(text)
    return html
