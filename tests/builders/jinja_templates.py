"""Chat templates that TRL brings, and what transformers makes of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import trl
from transformers.utils.chat_template_utils import render_jinja_template

from core.after_training.export.ollama.template import Messages, Render

TEMPLATES = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
OF_PICTURES = ("idefics3", "llava_next", "smolvlm")
"""Templates whose messages are lists of texts and pictures."""


def render_of(template: str) -> Render:
    """Return a function that renders messages with a Jinja template."""

    def render(messages: Messages, opens_answer: bool) -> str:
        tokens: Mapping[str, Any] = {"bos_token": "<s>", "eos_token": "</s>"}
        (text,), _spans = render_jinja_template(
            [list(messages)],
            chat_template=template,
            add_generation_prompt=opens_answer,
            **tokens,
        )
        return str(text).removeprefix("<s>")

    return render
