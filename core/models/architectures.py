"""Architectures that the installed transformers can train, read from its tables without importing
it: that would take seconds, and torch."""

import ast
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from core.job import Problem
from core.models.shapes import FAMILIES

TABLE = "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"
CHOOSE_ANOTHER = "choose a Llama, Mistral, Qwen, Gemma, Phi or similar model"
OTHER_INPUTS: Mapping[str, str] = {"vision_config": "vision", "audio_config": "audio"}
"""Key of config.json -> what the model reads beside text."""


@cache
def language_model_types() -> frozenset[str]:
    """Return the model types that transformers has a causal language model for.

    Empty if transformers is not installed or keeps its table elsewhere.
    """
    spec = find_spec("transformers")
    if spec is None or spec.origin is None:
        return frozenset()
    path = Path(spec.origin).parent / "models" / "auto" / "modeling_auto.py"
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return frozenset()
    for statement in tree.body:
        names = [
            each.id for each in getattr(statement, "targets", []) if isinstance(each, ast.Name)
        ]
        if TABLE in names:
            pairs = [each for each in ast.walk(statement) if isinstance(each, ast.Tuple)]
            keys = [pair.elts[0] for pair in pairs]
            return frozenset(str(key.value) for key in keys if isinstance(key, ast.Constant))
    return frozenset()


def is_native(model_type: object) -> bool:
    """Return True if transformers has the class itself, so that no code of the model is needed."""
    if not isinstance(model_type, str):
        return False
    return model_type in FAMILIES or model_type in language_model_types()


def problem_with(reference: str, config: Mapping[str, object]) -> Problem | None:
    """Return why a model is no language model that can be trained on texts; None if it is one."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        return None  # reading its shape reports that
    family = FAMILIES.get(model_type)
    if family is not None and family.is_multimodal:
        return None
    for key, also_reads in OTHER_INPUTS.items():
        if config.get(key):
            problem = f"{reference} is a model with {also_reads}, whose training is not done here"
            return Problem("model", problem, "choose the model for text alone")
    if config.get("is_encoder_decoder") is True:
        problem = (
            f"{reference} is a model with an encoder, of which only a decoder would be trained"
        )
        return Problem("model", problem, CHOOSE_ANOTHER)
    if family is not None or not language_model_types() or is_native(model_type):
        return None
    problem = f"{reference} is of the type {model_type}, for which the installed transformers has "
    return Problem("model", f"{problem}no language model", CHOOSE_ANOTHER)
