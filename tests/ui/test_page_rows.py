"""Test the panel of rows: lengths, histogram and rows through the model's own template."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from core.resolve import resolve
from core.runs import Home
from tests.builders.page import FormPage, Shown, demo
from ui.handlers import Handlers

pytestmark = pytest.mark.training  # the child imports the tokenizers of transformers

SECONDS_TO_MEASURE = 60
NUM_ROWS, MANY_ROWS = 311, 9000
PREVIEW = "core.workers.preview"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Handlers]:
    """Return handlers whose child process knows the demo after the first test."""
    made = Handlers(Home.find(str(tmp_path_factory.mktemp("home"))))
    yield made
    made.close()


@pytest.fixture
def page(shared: Handlers) -> FormPage:
    """Return an open page with the demo answered."""
    made = FormPage(shared)
    made.edit()
    return made


@pytest.fixture
def fresh_page(handlers: Handlers) -> FormPage:
    """Return a page whose child process is not started yet."""
    made = FormPage(handlers)
    made.edit()
    return made


def measured(page: FormPage, **changes: object) -> Shown:
    """Return what the page shows once every row is measured."""
    page.edit(**changes)
    deadline = time.monotonic() + SECONDS_TO_MEASURE
    while True:
        shown = page.fire(page.handlers.rows.on_lengths, "answer")
        if not shown["lengths_timer"].active:
            return shown
        assert time.monotonic() < deadline
        time.sleep(0.05)


def show_row(page: FormPage, number: object) -> Shown:
    return page.fire(page.handlers.rows.on_row, "answer", row_number=number)


def find_row(page: FormPage, query: str) -> Shown:
    on_find_row = page.handlers.rows.on_find_row
    return page.fire(on_find_row, "answer", row_number=1, row_query=query)


def test_the_first_answer_does_not_wait_for_the_tokenizer(fresh_page: FormPage) -> None:
    shown = fresh_page.fire(fresh_page.handlers.rows.on_lengths, "answer")
    assert "Measuring" in shown["lengths"]
    assert shown["lengths_timer"].active is True


def test_lengths_say_what_max_length_cuts(page: FormPage) -> None:
    assert "none cut at 256" in measured(page)["lengths"]
    shown = measured(page, max_length=40)
    assert "lose the whole answer" in shown["lengths"]
    assert 'class="cut"' in shown["histogram"]


def test_better_maximum_lengths_are_set(page: FormPage) -> None:
    measured(page, max_length=40)
    rows = page.handlers.rows
    p95 = page.fire(rows.on_set_length, "answer", which="p95")["max_length"]
    longest = page.fire(rows.on_set_length, "answer", which="max")["max_length"]
    assert 40 < p95 < longest
    assert "none cut" in measured(page)["lengths"]


def test_measured_lengths_replace_the_guess_from_the_file_size(fresh_page: FormPage) -> None:
    guessed = fresh_page.states["answer"].resolved.rows
    measured(fresh_page)
    fresh_page.edit()
    known = fresh_page.states["answer"].resolved.rows
    assert guessed.p95_tokens is None
    assert known.p95_tokens is not None
    assert known.mean_tokens != guessed.mean_tokens


def test_a_row_is_shown_with_what_counts_for_the_loss(page: FormPage) -> None:
    shown = show_row(page, 1)["row"]
    assert f"Row 1 of {NUM_ROWS}" in shown
    assert '<span class="counts">' in shown


@pytest.mark.parametrize(("asked", "number"), [(10_000, NUM_ROWS), (-5, 1), ("x", 1), (None, 1)])
def test_a_row_that_does_not_exist_is_the_nearest_one(
    page: FormPage, asked: object, number: int
) -> None:
    assert show_row(page, asked)["row_number"] == number


def test_the_next_and_the_previous_row_are_shown(page: FormPage) -> None:
    rows = page.handlers.rows
    assert page.fire(rows.on_turn, "answer", by=1, row_number=1)["row_number"] == 2
    assert page.fire(rows.on_turn, "answer", by=-1, row_number=3)["row_number"] == 2


def test_a_row_is_found_by_its_text(page: FormPage) -> None:
    assert "velvet" in find_row(page, "mrs velvet")["row"].lower()


def test_a_row_is_found_by_its_line(page: FormPage) -> None:
    assert find_row(page, "line 27")["row_number"] == 27


def test_a_text_that_no_row_contains_is_not_found(page: FormPage) -> None:
    assert "No row contains" in find_row(page, "no such words")["row"]


def test_text_of_a_row_is_escaped(page: FormPage, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "<img src=x onerror=alert(1)>"}\n')
    page.edit(dataset=str(file))
    assert "<img" not in show_row(page, 1)["row"]


def test_rows_that_lose_their_answers_do_not_start(page: FormPage) -> None:
    measured(page, max_length=12)
    assert "Not started. Max length" in page.start()["start_message"]


@pytest.fixture
def mix(tmp_path: Path) -> str:
    """Return a mix with a long question, 90 times."""
    turns = [("user", "Say it. " * 200), ("assistant", "Yes")]
    messages = [{"role": role, "content": text} for role, text in turns]
    file = tmp_path / "more.jsonl"
    file.write_text(json.dumps({"messages": messages}) + "\n")
    return f"{file} = 90"


def test_lost_answers_of_a_mix_count(page: FormPage, mix: str) -> None:
    shown = measured(page, mix=mix, eval_fraction=0)
    assert "90 lose the whole answer" in shown["lengths"]
    assert "Not started. Max length" in page.start()["start_message"]


def test_a_preview_shows_the_dataset_without_its_mix(page: FormPage, mix: str) -> None:
    page.edit(mix=mix, eval_fraction=0)
    assert f"Row 1 of {NUM_ROWS}" in show_row(page, 1)["row"]


def test_both_answers_of_a_preference_are_shown(page: FormPage) -> None:
    page.edit(stage="dpo")
    shown = show_row(page, 1)["row"]
    assert "rejected" in shown
    assert shown.count("<pre>") == 2


def test_a_model_without_a_tokenizer_is_a_message(page: FormPage, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    page.edit(model=str(tmp_path))
    assert 'class="notice' in show_row(page, 1)["row"]


def test_a_preview_that_failed_is_not_started_at_every_edit(page: FormPage, tmp_path: Path) -> None:
    shown = measured(page, model="meta-llama/Llama-3.1-8B")  # its tokenizer is not here
    said = "not on this machine, and the Hugging Face Hub cannot be reached. Connect this machine"
    assert said in shown["lengths"]
    assert ": meta-llama" not in shown["lengths"]
    resolved = resolve(demo(model="meta-llama/Llama-3.1-8B"))
    before = page.handlers.previews.of_training(resolved)
    page.edit(lora_r=9)
    assert page.handlers.previews.of_training(resolved) is before


@pytest.fixture
def half_measured(fresh_page: FormPage, tmp_path: Path) -> FormPage:
    """Return a page whose child process was killed while it measured many rows."""
    turns = [("user", "Say it. " * 20), ("assistant", "Yes. " * 20)]
    messages = [{"role": role, "content": text} for role, text in turns]
    rows = [json.dumps({"messages": messages, "number": number}) for number in range(MANY_ROWS)]
    file = tmp_path / "many.jsonl"
    file.write_text("\n".join(rows))
    fresh_page.edit(dataset=str(file))
    previews = fresh_page.handlers.previews
    resolved = fresh_page.states["answer"].resolved
    deadline = time.monotonic() + SECONDS_TO_MEASURE
    while previews.training_lengths(resolved) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    max(preview_children(), key=psutil.Process.create_time).kill()
    return fresh_page


def preview_children() -> list[psutil.Process]:
    """Return the programs that preview rows for this process."""
    return [each for each in psutil.Process().children() if PREVIEW in each.cmdline()]


def test_a_start_goes_on_without_a_measuring_child_that_died(half_measured: FormPage) -> None:
    on_lengths = half_measured.handlers.rows.on_lengths
    while (shown := half_measured.fire(on_lengths, "answer"))["lengths_timer"].active:
        time.sleep(0.05)
    assert "the preview stopped: it was ended by signal 9" in shown["lengths"]
    before = preview_children()
    assert "Started" in half_measured.start()["start_message"]
    assert preview_children() == before
    assert "ended by signal 9" in half_measured.fire(on_lengths, "answer")["lengths"]


def test_estimate_counts_the_rows_of_an_evaluation_file(page: FormPage, tmp_path: Path) -> None:
    file = tmp_path / "evaluation.jsonl"
    file.write_text(json.dumps({"prompt": "Hi", "completion": "Hello there"}) + "\n")
    measured(page)
    alone = page.edit()["answer"]
    measured(page, eval_dataset=str(file))
    beside = page.edit()["answer"]
    assert beside.resolved.rows.max_tokens == alone.resolved.rows.max_tokens
    assert beside.estimate.total_bytes == alone.estimate.total_bytes
