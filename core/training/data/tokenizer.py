"""Load the tokenizer of a model, with a chat template. Never imports torch, which the preview
worker lacks."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from ..contract.failures import TrainingError

CHAT_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\n' }}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}
            {{- message['content'] + (eos_token or '<|im_end|>') }}
        {%- endgeneration %}
    {%- else %}
        {{- message['content'] + (eos_token or '<|im_end|>') }}
    {%- endif %}
    {{- '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""
"""Template for models without one: ChatML, but a turn ends with the model's own end token, at which
generation stops."""


def source_of(model: str, revision: str) -> dict[str, str]:
    """Return the arguments of from_pretrained that name a model. A folder has no revisions."""
    source = {"pretrained_model_name_or_path": model}
    if not Path(model).is_dir():
        source["revision"] = revision
    return source


def load_tokenizer(model: str, revision: str, *, is_conversational: bool) -> Any:
    """Load the tokenizer of a model, with a chat template if the rows are conversations.

    Raises TrainingError, and what the library raises if there is none.
    """
    tokenizer = AutoTokenizer.from_pretrained(**source_of(model, revision), trust_remote_code=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise TrainingError(
            f"The tokenizer of {model} has no token that could pad: it names no end token."
        )
    if is_conversational and tokenizer.chat_template is None:
        print(f"{model} has no chat template: a ChatML one is used and saved with the result.")
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def training_template(tokenizer: Any, model: str) -> str | None:
    """Return TRL's replacement for a chat template that does not mark the answers; None if it marks
    them itself.

    Raises TrainingError if TRL has none.
    """
    from trl.chat_template_utils import get_training_chat_template, has_generation_markers

    if has_generation_markers(tokenizer.chat_template):
        return None
    try:
        template: str | None = get_training_chat_template(tokenizer)
    except ValueError:
        raise TrainingError(
            f"The chat template of {model} does not mark the assistant's turns: switch "
            "assistant_only_loss off, or give the model a chat template with {% generation %} "
            "markers."
        ) from None
    return template
