"""The look at the data: lengths, histogram and rows through the model's own template, as the page shows them."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.resolve import default_fields
from core.runs import Home
from ui.handlers import Handlers

pytestmark = pytest.mark.training  # the child imports the tokenizers of transformers


@pytest.fixture
def handlers(home: Home) -> Iterator[Handlers]:
    made = Handlers(home)
    yield made
    made.previews.close()


def demo(**changes: object) -> dict[str, object]:
    return default_fields("demo", "lora") | {"model": "demo", "dataset": "demo"} | changes


def measured(handlers: Handlers, **changes: object) -> dict[str, object]:
    """What the page shows once every row is measured."""
    deadline = time.monotonic() + 60
    while (shown := handlers.on_lengths(**demo(**changes)))["measuring"].active:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return shown


def test_the_first_answer_does_not_wait_for_the_tokenizer(handlers: Handlers) -> None:
    shown = handlers.on_lengths(**demo())
    assert "Measuring" in str(shown["lengths"]) and shown["measuring"].active


def test_lengths_tell_what_max_length_cuts_and_offer_better_ones(handlers: Handlers) -> None:
    assert "none cut at 256" in str(measured(handlers)["lengths"])
    shown = measured(handlers, max_length=40)
    assert "lose the whole answer" in str(shown["lengths"]) and 'class="cut"' in str(
        shown["histogram"]
    )
    longest = handlers.on_length_longest(**demo(max_length=40))["max_length"]
    assert "none cut" in str(measured(handlers, max_length=longest)["lengths"])
    assert handlers.on_length_p95(**demo(max_length=40))["max_length"] < longest


def test_measured_lengths_take_the_place_of_the_guess_by_bytes(handlers: Handlers) -> None:
    guessed = handlers.previews.statistics(demo())
    measured(handlers)
    known = handlers.previews.statistics(demo())
    assert guessed and known and known.p95_tokens and known.mean_tokens != guessed.mean_tokens


def test_rows_are_turned_over_and_found(handlers: Handlers) -> None:
    first = handlers.on_row(1, **demo())
    assert "Row 1 of 311" in str(first["row"]) and '<span class="counts">' in str(first["row"])
    assert handlers.on_next_row(1, **demo())["row_number"] == 2
    assert handlers.on_previous_row(1, **demo())["row_number"] == 1
    assert handlers.on_row(10_000, **demo())["row_number"] == 311
    assert "velvet" in str(handlers.on_find_row(1, "mrs velvet", **demo())["row"]).lower()
    assert handlers.on_find_row(1, "line 27", **demo())["row_number"] == 27
    assert "No row holds" in str(handlers.on_find_row(1, "no such words", **demo())["row"])


def test_a_row_that_is_an_attack_is_shown_as_text(handlers: Handlers, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "<img src=x onerror=alert(1)>"}\n')
    assert "<img" not in str(handlers.on_row(1, **demo(dataset=str(file)))["row"])


def test_rows_that_lose_their_answers_are_not_trained_on_unasked(handlers: Handlers) -> None:
    measured(handlers, max_length=12)
    refused = handlers.on_start(**demo(max_length=12))
    assert "Not started. Max length" in str(refused["start_message"])


def test_lost_answers_of_a_mix_are_counted_too(handlers: Handlers, tmp_path: Path) -> None:
    file = tmp_path / "more.jsonl"
    said = (
        {"role": role, "content": text}
        for role, text in (("user", "Say it. " * 200), ("assistant", "Yes"))
    )
    file.write_text(json.dumps({"messages": [*said]}) + "\n")
    mixed = {"mix": f"{file} = 90", "eval_fraction": 0}
    assert "90 lose the whole answer" in str(measured(handlers, **mixed)["lengths"])
    assert "Not started. Max length" in str(handlers.on_start(**demo(**mixed))["start_message"])
    assert "Row 1 of 311" in str(handlers.on_row(1, **demo(**mixed))["row"])


def test_both_answers_of_a_preference_are_shown(handlers: Handlers) -> None:
    shown = str(handlers.on_row(1, **demo(stage="dpo"))["row"])
    assert "rejected" in shown and shown.count("<pre>") == 2


def test_a_model_without_a_tokenizer_is_a_sentence(handlers: Handlers, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert 'class="notice' in str(handlers.on_row(1, **demo(model=str(tmp_path)))["row"])
