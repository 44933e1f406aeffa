"""Test one's own data in a real browser: repair it, look at rows, cut them, train on them."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from core import runs
from core.runs import Home
from tests.builders.browser import (
    BROWSER_TESTS,
    DEMO,
    App,
    open_form,
    press,
    set_number,
    wait_until_finished,
)

pytestmark = BROWSER_TESTS


@pytest.mark.slow
def test_bad_lines_are_removed_and_the_other_rows_are_trained_on(
    app: App, page: Page, home: Home, tmp_path: Path
) -> None:
    good = write_rows(
        tmp_path / "rows.jsonl", {7: '{"messages": [', 17: '{"messages": []}', 27: '{"text": 1}'}
    )
    open_form(page, app)
    page.locator("#upload input[type=file]").set_input_files(tmp_path / "rows.jsonl")
    data = page.locator("#data-line")
    expect(data).to_contain_text("3 problems")
    data.locator("summary").click()
    for number in (7, 17, 27):
        expect(data).to_contain_text(f"line {number},")
    press(page, "Remove invalid rows")
    expect(page.locator("#data-message")).to_contain_text("3 rows left out: lines 7, 17, 27")
    expect(data).to_contain_text("37 rows · messages · no problems")

    look_at_rows(page, good)
    longest = cut_and_uncut(page)
    set_number(page, "num_train_epochs", 1)
    press(page, "Start training")
    wait_until_finished(page)
    (run,) = runs.listing.list_runs(home)
    assert (run.job.max_length, run.job.num_train_epochs) == (longest, 1)


@pytest.mark.slow
def test_columns_are_chosen_from_menus_and_data_can_switch_the_stage(
    app: App, page: Page, tmp_path: Path
) -> None:
    open_form(page, app)
    data = page.locator("#data-line")
    upload(page, tmp_path / "odd.jsonl", {"Frage": "Wer?", "Antwort": "Pip.", "n": 1})
    expect(data).to_contain_text("unknown columns")
    page.locator("#row-format input").click()
    page.get_by_role("option", name="prompt and completion").click()
    expect(page.locator("#column-0")).to_contain_text("prompt")
    for box, name in (("column-0", "Frage"), ("column-1", "Antwort")):
        page.locator(f"#{box} input").click()
        page.locator(f"#{box}").get_by_role("option", name=name, exact=True).click()
    press(page, "Use these columns")
    expect(data).to_contain_text("1 row · prompt + completion · no problems")

    pair = {"prompt": "Who?", "chosen": "Pip.", "rejected": "Joe."}
    upload(page, tmp_path / "pairs.jsonl", pair)
    press(page, "Switch to stage DPO")
    expect(data).to_contain_text("1 row · prompt + chosen + rejected · no problems")
    expect(page.locator("#field-stage input")).to_have_value("DPO")
    expect(page.locator("#field-dataset input")).to_have_value(re.compile("^pairs.jsonl · "))


@pytest.mark.slow
def test_the_page_says_what_is_read_and_asks_about_the_rest(
    app: App, page: Page, tmp_path: Path
) -> None:
    open_form(page, app)
    row = {"question": "Who quacks?", "answer": "The duck.", "system": "Speak like a sailor."}
    row |= {"context": "A duck is on the pond.", "image": "pond.png"}
    upload(page, tmp_path / "pond.jsonl", row)
    data = page.locator("#data-line")
    expect(data).to_contain_text("question + answer with context, system")
    expect(page.locator("#data-line .not-read")).to_contain_text("image in 1 row, first on line 1")
    expect(page.locator("#start-facts")).to_contain_text("press Train without it")
    page.get_by_text("Preview rows as the model sees them").click()
    shown = page.locator("#row pre")
    expect(shown).to_contain_text("<|im_start|>system Speak like a sailor.<|im_end|>")
    expect(shown).to_contain_text("A duck is on the pond.")
    expect(shown.locator(".counts")).to_contain_text("The duck.")
    press(page, "Train without it")
    expect(page.locator("#start-facts")).not_to_contain_text("Cannot start")
    expect(page.get_by_role("button", name="Start training")).to_be_enabled()


@pytest.mark.slow
def test_one_click_maps_the_columns_of_another_language(
    app: App, page: Page, tmp_path: Path
) -> None:
    open_form(page, app)
    row = {"Pregunta": "Who quacks?", "Respuesta": "The duck.", "Sistema": "Speak like a sailor."}
    row |= {"Contexto": "A duck is on the pond.", "foto": "pond.png"}
    upload(page, tmp_path / "laguna.jsonl", row)
    press(page, "Use these columns")
    expect(page.locator("#data-message")).to_contain_text("Sistema became system")
    expect(page.locator("#data-line")).to_contain_text("question + answer with context, system")
    expect(page.locator("#data-line .not-read")).to_contain_text("foto in 1 row")


@pytest.mark.slow
def test_one_click_keeps_the_wanted_answers(app: App, page: Page, tmp_path: Path) -> None:
    open_form(page, app)
    rows = [
        {"question": "Who quacks?", "answer": answer, "label": answer == "The duck."}
        for answer in ("The cow.", "The duck.")
    ]
    file = tmp_path / "verdicts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    page.locator("#upload input[type=file]").set_input_files(file)
    data = page.locator("#data-line")
    expect(data.locator(".not-read")).to_contain_text("label in 2 rows")
    expect(page.get_by_role("button", name="Switch to stage KTO")).to_be_visible()
    press(page, "Keep wanted rows")
    expect(page.locator("#data-message")).to_contain_text("1 row left out: line 1")
    expect(data).to_contain_text("1 row · question + answer · no problems")
    expect(page.get_by_role("button", name="Start training")).to_be_enabled()


def upload(page: Page, file: Path, row: Mapping[str, object]) -> None:
    """Upload a file of one row."""
    file.write_text(json.dumps(row) + "\n", encoding="utf-8")
    page.locator("#upload input[type=file]").set_input_files(file)


def look_at_rows(page: Page, good: list[dict[str, list[dict[str, str]]]]) -> None:
    """Open the rows as the model sees them, go to the next one, and search."""
    page.get_by_text("Preview rows as the model sees them").click()
    row, learnt = page.locator("#row .shown-row"), page.locator("#row pre .counts")
    expect(row).to_contain_text("Row 1 of 37")
    expect(learnt).to_contain_text(good[0]["messages"][-1]["content"])
    page.locator("#next-row").click()
    expect(row).to_contain_text("Row 2 of 37")
    expect(learnt).to_contain_text(good[1]["messages"][-1]["content"])
    wanted = good[30]["messages"][-1]["content"]
    page.get_by_placeholder("Search the rows").fill(wanted)
    page.get_by_placeholder("Search the rows").press("Enter")
    expect(learnt).to_contain_text(wanted)
    page.get_by_placeholder("Search the rows").fill("no row says this")
    page.get_by_placeholder("Search the rows").press("Enter")
    expect(page.locator("#row")).to_contain_text("No row contains 'no row says this'.")


def cut_and_uncut(page: Page) -> int:
    """Choose a max_length that cuts rows, then press the button that cuts none.

    Return the length that the button sets.
    """
    line, cut = page.locator("#histogram em"), page.locator("#histogram .cut")
    expect(page.locator("#lengths")).to_contain_text("none cut at 256")
    set_number(page, "max_length", 20)
    expect(cut).not_to_have_count(0)
    first = line.get_attribute("style")
    set_number(page, "max_length", 30)
    expect(line).not_to_have_attribute("style", first or "")
    page.locator("#length-longest").click()
    expect(page.locator("#lengths")).to_contain_text("none cut")
    expect(cut).to_have_count(0)
    return int(page.locator("#field-max_length input").input_value())


def write_rows(path: Path, bad: dict[int, str]) -> list[dict[str, list[dict[str, str]]]]:
    """Write forty rows of the demo, and put `bad` lines in place of some, by number from 1.

    Return the good rows.
    """
    lines = (DEMO / "data.jsonl").read_text(encoding="utf-8").splitlines()[:40]
    written = [bad.get(number, line) for number, line in enumerate(lines, 1)]
    path.write_text("\n".join(written) + "\n", encoding="utf-8")
    return [json.loads(line) for number, line in enumerate(lines, 1) if number not in bad]
