"""Model card of a run: what may not be in it, and what its licence asks."""

from html import escape
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from core.after_training.export.card import new_card
from core.after_training.export.licences import CONDITIONS, licence_text
from core.job import JobSpec
from core.models import models
from core.runs import Home, Run, read
from core.training.contract.files import write_json
from tests.builders.fake_runs import bare_run

LLAMA = "meta-llama/Llama-3.1-8B"
SECRET = "/home/someone/private"
PLACES = {
    "mix": f"{SECRET}/more.jsonl = 0.5\n{SECRET}/other.jsonl = 0.2",
    "check_suites": f"identity,{SECRET}/suite.jsonl",
    "dataset": f"{SECRET}/rows.jsonl",
    "eval_dataset": f"{SECRET}/eval.jsonl",
    "adapter": f"{SECRET}/adapter",
    "reward_model": f"{SECRET}/judge",
}


def made_run(home: Home, name: str = "made", **fields: object) -> Run:
    """Return a run of these fields."""
    folder = bare_run(home, name, model="demo", dataset="demo")
    job = JobSpec.parse({"model": "demo", "dataset": "demo"}).model_dump() | fields
    write_json(folder / "job.json", job)
    return read(home, name)


def card_of(home: Home, sent: str = "adapter", **fields: object) -> str:
    """Return the new card of a run."""
    return new_card(made_run(home, **fields), "me/model", sent)


def front_of(card: str) -> list[str]:
    """Return the lines of the front matter of a card."""
    return card.split("---\n", 2)[1].splitlines()


def test_no_path_of_this_machine_is_in_a_card(home: Home) -> None:
    card = card_of(home, **PLACES)
    assert SECRET not in card
    assert "| mix | more.jsonl = 0.5, other.jsonl = 0.2 |" in card
    assert "| check_suites | identity, suite.jsonl |" in card


def test_a_setting_is_one_row_whatever_its_text(home: Home) -> None:
    card = card_of(home, reward_pattern="a|b\n## <b>Mine</b>")
    assert r"| reward_pattern | a\|b ## &lt;b&gt;Mine&lt;/b&gt; |" in card


@pytest.mark.parametrize("base", ["<img src=x> [y](http:z)", "a|b `c` *d*"])
def test_the_name_of_a_base_is_text_whatever_it_is(home: Home, tmp_path: Path, base: str) -> None:
    card = card_of(home, model=str(tmp_path / base))
    shown = MarkdownIt("commonmark").render(card.split("---\n", 2)[2])
    assert f"The licence of {escape(base)} holds" in shown
    assert f"LoRA adapter over {escape(base)}, trained" in shown


@pytest.mark.parametrize(
    ("base", "line", "condition"),
    [
        ("meta-llama/Llama-3.1-8B", "license: llama3.1", "Built with Llama"),
        ("google/gemma-2-2b", "license: gemma", "A copy of its terms"),
        ("Qwen/Qwen2.5-3B", "license_name: qwen-research", "no commercial use"),
        ("Qwen/Qwen2.5-7B", "license: apache-2.0", "https://huggingface.co/Qwen/Qwen2.5-7B"),
    ],
)
def test_a_card_names_the_licence_and_its_conditions(
    home: Home, base: str, line: str, condition: str
) -> None:
    card = card_of(home, model=base)
    front, body = card.split("---\n", 2)[1:]
    assert line in front.splitlines()
    assert condition in body


@pytest.mark.parametrize(
    ("sent", "library"),
    [("adapter", "peft"), ("merged", "transformers"), ("gguf", "gguf")],
)
def test_a_card_names_the_library_that_reads_what_is_sent(
    home: Home, sent: str, library: str
) -> None:
    assert f"library_name: {library}" in front_of(card_of(home, sent))


@pytest.mark.parametrize("place", ["output", "checkpoints/checkpoint-4", "exports/merged"])
def test_a_result_of_a_result_has_the_licence_of_the_first_base(home: Home, place: str) -> None:
    first = made_run(home, "first", model=LLAMA, method="full")
    second = made_run(home, "second", model=str(first.folder / place), method="full")
    third = made_run(home, "third", model=str(second.folder / "output"), method="full")
    card = new_card(third, "me/model", "merged")
    assert {f'base_model: "{LLAMA}"', "license: llama3.1"} <= set(front_of(card))
    assert "Built with Llama" in card
    assert f"Fine-tuned second, which was made from {LLAMA}, trained with sft" in card


def test_a_card_of_a_base_that_is_not_in_the_catalogue_is_read(home: Home, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    text = "---\nlicense: other\nlicense_name: 'my-licence'\n---\n# Base\nlicense: mit\n"
    (tmp_path / "base" / "README.md").write_text(text)
    card = card_of(home, model=str(tmp_path / "base"), method="full")
    assert {"license: other", "license_name: my-licence"} <= set(front_of(card))
    assert "The licence of base (my-licence) holds for this model too." in card


def test_a_base_that_is_not_in_the_catalogue_has_no_licence_line(home: Home) -> None:
    assert "license" not in card_of(home)
    assert licence_text("demo").endswith("with its conditions.")


def test_conditions_are_of_licences_of_the_catalogue() -> None:
    assert CONDITIONS.keys() <= {each.license for each in models().values()}
