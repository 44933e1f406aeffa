"""Rows of every kind for tests of the preview, its session, and models with other templates."""

from pathlib import Path
from typing import Any

from core.workers.preview.session import PreviewSession
from tests.builders.paths import DEMO
from tests.builders.training_runs import copy_model

CHAT = {
    "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there"}]
}
TURNS = {
    "messages": [
        *CHAT["messages"],
        {"role": "user", "content": "é 😀"},
        {"role": "assistant", "content": "Bye"},
    ]
}
ASK = {
    "prompt": [{"role": "user", "content": "1 + 1?"}],
    "completion": [{"role": "assistant", "content": "two"}],
}
PAIR = {"prompt": "1 + 1 =", "chosen": " 2", "rejected": " 3, or 4"}
CHAT_PAIR = {
    "prompt": ASK["prompt"],
    "chosen": ASK["completion"],
    "rejected": [{"role": "assistant", "content": "a lot"}],
}
LONG = "The market is on Friday. " * 20
ROWS: dict[str, list[dict[str, Any]]] = {
    "messages": [
        CHAT,
        TURNS,
        {"messages": [{"role": "user", "content": LONG}, {"role": "assistant", "content": "No"}]},
    ],
    "exchanges": [
        ASK,
        {"question": LONG, "answer": "b"},
        {"question": "a", "answer": LONG, "system": "Be brief."},
    ],
    "plain exchanges": [
        {"prompt": "1 + 1 =", "completion": " 2"},
        {"prompt": LONG, "completion": "b"},
    ],
    "texts": [{"text": "Once upon a time"}, {"text": LONG}, {"text": "The end<|im_end|>"}],
}
PAIRS: dict[str, list[dict[str, Any]]] = {
    "texts": [
        PAIR,
        {"prompt": LONG, "chosen": "b", "rejected": "c"},
        {"prompt": "", "chosen": LONG, "rejected": "c"},
    ],
    "messages": [CHAT_PAIR, CHAT_PAIR | {"prompt": [{"role": "user", "content": LONG}]}],
    "without prompt": [
        {name: [*CHAT["messages"][:1], *CHAT_PAIR[name]] for name in ("chosen", "rejected")}
    ],
}


def open_session(
    dataset: Path,
    model: Path = DEMO / "model",
    assistant_only_loss: bool = True,
    stage: str = "sft",
    use_chat_template: bool = False,
) -> PreviewSession:
    """Return the child's side of a preview, in this process."""
    request = {
        "dataset": str(dataset),
        "model": str(model),
        "revision": "main",
        "seconds_for_a_row": 0,
        "stage": stage,
        "assistant_only_loss": assistant_only_loss,
        "use_chat_template": use_chat_template,
    }
    return PreviewSession(request)


def model_with_template(folder: Path, template: str) -> Path:
    """Return a copy of the demo model with another chat template."""
    model = copy_model(folder / "model")
    (model / "chat_template.jinja").write_text(template)
    return model


def model_with_attack(folder: Path, attack: str) -> Path:
    """Return the demo model with code in its template, run for conversations of several turns."""
    template = (DEMO / "model" / "chat_template.jinja").read_text()
    condition = "{%- if messages|length > 2 %}" + attack + "{%- endif %}"
    return model_with_template(folder, condition + template)


def learnt_text(shown: dict[str, Any]) -> str:
    """Return the parts of a shown text that count for the loss."""
    return "".join(text for text, counts in shown["pieces"] if counts)
