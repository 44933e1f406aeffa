"""Encoder of the rows of a job: the same for check, preview and training. Never imports torch."""

from collections.abc import Mapping
from typing import Any

from ..contract.stages import STAGES
from .chat import ChatTemplate
from .preferences import PreferenceEncoder
from .tokenizer import training_template
from .tokens import Encoder

AnyEncoder = Encoder | PreferenceEncoder


def encoder_for(
    tokenizer: Any, stage: str, row: Mapping[str, Any], assistant_only_loss: bool
) -> AnyEncoder:
    """Return the encoder of a stage for rows like this one, in TRL's columns."""
    facts = STAGES[stage]
    if facts.takes_pairs_as_text:
        return PreferenceEncoder(tokenizer, stage)
    on_answers = "text" not in row and not facts.learns_every_token
    if "assistant_only_loss" in facts.fields:
        on_answers = on_answers and assistant_only_loss
    marked = None
    if on_answers and "messages" in row:
        marked = training_template(tokenizer)
    return Encoder(ChatTemplate(tokenizer, marked), on_answers, stage)
