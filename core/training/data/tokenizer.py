"""Load the tokenizer of a model, with a chat template. Never imports torch, which the preview
worker lacks."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from ..contract.failures import UNKNOWN, TrainingError, diagnose

CHAT_TEMPLATE = """\
{%- set end = eos_token or '<|im_end|>' %}
{%- set first = messages[0] if messages[0]['role'] in ('system', 'developer') else none %}
{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if first %}
        {{- first['content'] + '\n\n' }}
    {%- endif %}
    {{- 'You may call these functions. Write each call as JSON inside <tool_call></tool_call>:' }}
    {%- for tool in tools %}
        {{- '\n' + (tool | tojson) }}
    {%- endfor %}
    {{- end + '\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if not (tools and first and loop.first) %}
        {{- '<|im_start|>' + message['role'] + '\n' }}
        {%- if message['role'] == 'assistant' %}
            {%- generation %}
                {%- if message.reasoning_content %}
                    {{- '<think>\n' + message.reasoning_content + '\n</think>\n\n' }}
                {%- endif %}
                {{- message.content or '' }}
                {%- for call in message.tool_calls or [] %}
                    {%- set call = call.function or call %}
                    {{- '\n' if message.content or not loop.first }}
                    {{- '<tool_call>\n{"name": ' + (call.name | tojson) + ', "arguments": ' }}
                    {%- if call.arguments is string %}
                        {{- call.arguments }}
                    {%- else %}
                        {{- (call.arguments or {}) | tojson }}
                    {%- endif %}
                    {{- '}\n</tool_call>' }}
                {%- endfor %}
                {{- end }}
            {%- endgeneration %}
        {%- else %}
            {{- (message.content or '') + end }}
        {%- endif %}
        {{- '\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""
"""Template for models without one: ChatML, but a turn ends with the model's own end token, at which
generation stops. Prints tools, calls and thoughts as the templates of Qwen do."""


BAD_TOKENIZER = "bad_tokenizer"
"""Cause of a failure that lies in the tokenizer's files."""


def source_of(model: str, revision: str) -> dict[str, str]:
    """Return the arguments of from_pretrained that name a model. A folder has no revisions."""
    source = {"pretrained_model_name_or_path": model}
    if not Path(model).is_dir():
        source["revision"] = revision
    return source


def load_tokenizer(model: str, revision: str, *, is_conversational: bool) -> Any:
    """Load the tokenizer of a model, with a chat template if the rows are conversations.

    Raises TrainingError, and what the library raises if the model cannot be reached.
    """
    tokenizer = _read_tokenizer(model, revision)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise TrainingError(
            f"The tokenizer of {model} has no token that could pad: it names no end token.",
            cause=BAD_TOKENIZER,
        )
    note = choose_named_template(tokenizer)
    if note:
        print(note)
    if is_conversational and tokenizer.chat_template is None:
        print(f"{model} has no chat template: a ChatML one is used and saved with the result.")
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _read_tokenizer(model: str, revision: str) -> Any:
    source = source_of(model, revision)
    try:
        return AutoTokenizer.from_pretrained(**source, trust_remote_code=False)
    except Exception as error:  # damaged files may raise anything
        if diagnose(error, model, "load").cause != UNKNOWN:
            raise
        sentence = f"The tokenizer of {model} cannot be read: its files are damaged or incomplete."
        raise TrainingError(sentence, cause=BAD_TOKENIZER) from error


def choose_named_template(tokenizer: Any) -> str:
    """Keep one of several named chat templates: the default, or else the first.

    Return a sentence about it; "" for a tokenizer with one template or none.
    """
    templates = tokenizer.chat_template
    if not isinstance(templates, dict):
        return ""
    chosen = "default" if "default" in templates else next(iter(templates), "")
    tokenizer.chat_template = templates.get(chosen)
    note = f"Of the model's chat templates ({', '.join(templates)}), {chosen} is used."
    tokenizer.init_kwargs["template_note"] = note
    return note


def training_template(tokenizer: Any) -> str | None:
    """Return TRL's form of a chat template, which marks the answers; None if it marks them itself,
    or TRL has none."""
    from trl.chat_template_utils import get_training_chat_template, has_generation_markers

    if has_generation_markers(tokenizer.chat_template):
        return None
    try:
        template: str | None = get_training_chat_template(tokenizer)
    except Exception:  # it tries the template out, and that may raise anything
        return None
    return template
