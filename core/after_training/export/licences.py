"""Licence of a base as its preset says it, and what it asks of models that are made from it."""

from collections.abc import Mapping
from pathlib import Path

from core.after_training.export.origin import licence_in
from core.models import HUB_ID, models
from core.wording import as_markdown

BUILT_WITH_LLAMA = (
    'The name of a model made from it begins with "Llama", and "Built with Llama" is shown where '
    "it is offered. A copy of the licence goes along."
)
BUILT_WITH_QWEN = 'What is written about a model made from it says "Built with Qwen".'
CONDITIONS: Mapping[str, str] = {
    "llama2": "A copy of the licence goes along.",
    "llama3": (
        'The name of a model made from it begins with "Llama 3", and "Built with Meta Llama 3" is '
        "shown where it is offered. A copy of the licence goes along."
    ),
    "llama3.1": BUILT_WITH_LLAMA,
    "llama3.2": BUILT_WITH_LLAMA,
    "llama3.3": BUILT_WITH_LLAMA,
    "gemma": "A copy of its terms goes along, and its rules of use hold for all users.",
    "qwen": BUILT_WITH_QWEN,
    "qwen-research": f"It allows no commercial use. {BUILT_WITH_QWEN}",
}
"""Licence -> the main conditions for a model that is made from the base and passed on."""
WITHOUT_ID = ("qwen", "qwen-research")
"""Licences of which the Hub has no id."""


def licence_of(base: str, folder: Path | None = None) -> str:
    """Return the licence of a base of the catalogue, of another one what the model card in its
    folder says; "" if neither says it."""
    preset = models().get(base)
    if preset:
        return preset.license
    named = licence_in(folder)
    return named.get("license_name") or named.get("license", "")


def licence_lines(base: str, folder: Path | None = None) -> tuple[str, ...]:
    """Return the lines of a model card's front matter that name the licence."""
    licence = licence_of(base, folder)
    if licence in WITHOUT_ID or (licence and licence_in(folder).get("license_name") == licence):
        return "license: other", f"license_name: {licence}"
    return (f"license: {licence}",) if licence else ()


def licence_text(base: str, folder: Path | None = None) -> str:
    """Return which licence holds for a model made from a base, and its main conditions."""
    licence = licence_of(base, folder)
    if not licence:
        return f"The licence of {as_markdown(base)} holds for this model too, with its conditions."
    named = f"{as_markdown(base)} ({licence})"
    said = [f"The licence of {named} holds for this model too."]
    said += filter(None, (CONDITIONS.get(licence),))
    if HUB_ID.fullmatch(base):
        said.append(f"Read it at https://huggingface.co/{base}.")
    return " ".join(said)
