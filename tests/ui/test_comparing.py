"""Compare methods on the page: side by side, queued, reported; what a card can train."""

import re

import gradio as gr
import pytest

from core.after_training.compare import optimizer, record
from core.after_training.compare.on_card import Wish, models_on_card
from core.models import gpus
from core.runs import Home, read
from core.runs.listing import list_runs
from core.speed import RowStatistics
from tests.builders.fake_runs import bare_run, write_metrics
from ui.form import first_values
from ui.handlers import Handlers, panels
from ui.handlers.answer import answer_values
from ui.handlers.comparing import METHODS, variants_of
from ui.render import comparison

NEEDS_OPTUNA = pytest.mark.skipif(not optimizer.is_installed(), reason="needs Optuna")
FIVE = ("lora_r", "warmup_steps", "max_steps", "logging_steps", "save_steps")
MANY = ", ".join(map(str, range(1, 90)))
"""Values whose combinations no program can go through, of five settings."""
LLAMA = "meta-llama/Llama-3.1-8B"


def answer_to(home: Home, **fields: object):
    values = {**first_values(fields.get("model", "demo"), "lora"), "model": "demo", **fields}
    return answer_values(home, lambda resolved: RowStatistics(300, 100.0), values)


def test_methods_are_estimated_side_by_side(home: Home) -> None:
    html = comparison.estimates(variants_of(answer_to(home)))
    for head in ("<th>Full</th>", "<th>LoRA</th>", "<th>QLoRA</th>"):
        assert head in html


def test_a_method_that_does_not_fit_says_what_helps(home: Home) -> None:
    answer = answer_to(home, model=LLAMA, dataset="demo", gpu="rtx-4090")
    html = comparison.estimates(variants_of(answer))
    (other,) = re.findall(r"<tr><th>H200 SXM 141 GB</th>(.*?)</tr>", html)
    assert other.count("<td>") == 3
    assert "too large" not in other
    assert "Full is left out: needs " in html
    assert "What helps: " in html


def test_the_profile_chooses_for_each_method_again(home: Home) -> None:
    values = {"model": LLAMA, "dataset": "demo", "gpu": "rtx-4090", "profile": "fastest"}
    answer = answer_to(home, **values)
    found = {each.point.method: each for each in variants_of(answer)}
    resolved = found["qlora"].resolved
    assert resolved is not None
    assert resolved.plan.choices


def queued(
    home: Home, methods: tuple[str, ...], lines: str = "", seeds: int = 1, tried: int = 0
) -> dict[str, object]:
    """Queue what the panel says, and return what the page shows."""
    handlers = Handlers(home)
    try:
        return handlers.comparing.on_compare(
            answer_to(home), [*methods], sweep_lines=lines, sweep_seeds=seeds, sweep_tried=tried
        )
    finally:
        handlers.close()


@pytest.mark.usefixtures("fake_program")
def test_one_run_of_each_method_is_queued(home: Home) -> None:
    updates = queued(home, METHODS)
    assert "Queued 3 runs" in str(updates["compare_message"])
    assert updates["tabs"] == gr.update(selected="runs")
    methods = {run.job.method for run in list_runs(home)}
    assert methods == {"full", "lora", "qlora"}
    assert len(record.list_comparisons(home)) == 1


@pytest.mark.usefixtures("fake_program")
def test_settings_and_seeds_vary_as_the_panel_says(home: Home) -> None:
    queued(home, ("lora",), "lora_r = 8, 32\n\nlearning_rate=1e-3", seeds=2)
    (found,) = record.list_comparisons(home)
    settings = [(each.settings["lora_r"], each.seed) for each in found.trials]
    assert settings == [(8, 42), (32, 42), (8, 43), (32, 43)]
    assert found.has_checks
    assert found.command == (
        "python app.py compare job.json --methods lora --seeds 2 --axis lora_r=8,32 "
        "--axis learning_rate=1e-3"
    )


@NEEDS_OPTUNA
@pytest.mark.usefixtures("fake_program")
def test_optuna_chooses_as_many_runs_as_the_panel_says(home: Home) -> None:
    updates = queued(home, ("lora",), "learning_rate = 1e-4..1e-2", tried=5)
    (found,) = record.list_comparisons(home)
    assert found.search is not None
    assert found.search.num_runs == 5
    assert "Optuna chooses " in str(updates["compare_message"])


@pytest.mark.parametrize(
    ("lines", "tried", "said"),
    [
        ("lora_r 8", 0, "write it like learning_rate=1e-4,2e-4"),
        ("lora_q = 8", 0, "did you mean lora_r?"),
        ("lora_r = 8\nlora_r = 16", 0, "lora_r is given twice"),
        ("gpu = t4, l4", 0, "gpu is an axis of estimates only"),
        ("learning_rate = 1e-4..1e-2", 0, "is a range"),
        ("seed = 1, 2", 0, "say how many seeds instead"),
        ("", 5, "there is nothing to search"),
        ("\n".join(f"{name} = {MANY}" for name in FIVE), 0, "fewer values, at most 500 runs"),
    ],
)
def test_what_cannot_vary_is_said_and_nothing_begun(
    home: Home, lines: str, tried: int, said: str
) -> None:
    if tried and not optimizer.is_installed():
        pytest.skip("needs Optuna")
    assert said in str(queued(home, ("lora",), lines, tried=tried)["compare_message"])
    assert list_runs(home) == ()


@pytest.mark.usefixtures("fake_program")
def test_command_names_the_method_of_the_form_if_none_is_ticked(home: Home) -> None:
    queued(home, (), "mix = my rows.jsonl = 0.5", seeds=2)
    queued(home, (), "lora_r = 8, 32")
    commands = {each.command for each in record.list_comparisons(home)}
    assert commands == {
        "python app.py compare job.json --methods lora --seeds 2 --axis 'mix=my rows.jsonl = 0.5'",
        "python app.py compare job.json --methods lora --axis lora_r=8,32",
    }


@NEEDS_OPTUNA
def test_seeds_of_a_search_are_refused_not_ignored(home: Home) -> None:
    updates = queued(home, ("lora",), "learning_rate = 1e-4..1e-2", seeds=3, tried=5)
    assert "a search tries each setting with one seed" in str(updates["compare_message"])
    assert record.list_comparisons(home) == ()


@pytest.mark.parametrize("seeds", [-1, 501, 1e308])
def test_impossible_numbers_of_seeds_are_refused_in_few_words(home: Home, seeds: float) -> None:
    said = str(queued(home, ("lora",), seeds=seeds)["compare_message"])
    assert "Not started." in said
    assert len(said) < 300


def test_no_seed_is_refused(home: Home) -> None:
    said = str(queued(home, ("lora",), seeds=0)["compare_message"])
    assert "0 is too small" in said


def test_without_optuna_the_panel_says_what_to_install(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimizer, "PACKAGE", "optuna_that_is_not_there")
    updates = queued(home, ("lora",), "lora_r = 8, 16", tried=5)
    assert "requirements-optuna.txt" in str(updates["compare_message"])


def redrawn(home: Home, lines: str, seeds: int = 1) -> dict[str, object]:
    """Return what the page shows for LoRA with settings that vary."""
    boxes = {"sweep_methods": ["lora"], "sweep_lines": lines, "sweep_seeds": seeds}
    return panels.on_sweep({}, answer_to(home), **boxes, sweep_tried=0)


def test_ways_of_a_sweep_are_drawn_side_by_side(home: Home) -> None:
    updates = redrawn(home, "lora_r = 8, 32", seeds=3)
    assert "<th>LoRA, lora_r 8</th><th>LoRA, lora_r 32</th>" in str(updates["compare"])
    assert "6 runs in all." in str(updates["compare"])


def test_many_ways_are_counted_and_not_drawn(home: Home) -> None:
    ranks = ", ".join(map(str, range(1, 21)))
    updates = redrawn(home, f"lora_r = {ranks}", seeds=1)
    assert "20 runs in all." in str(updates["compare"])
    assert "<table" not in str(updates["compare"])


def test_wrong_line_is_refused_where_the_estimates_stand(home: Home) -> None:
    updates = redrawn(home, "lora_r = many", seeds=1)
    assert "many" in str(updates["compare"])
    assert "<table" not in str(updates["compare"])


def test_ticked_runs_have_a_report_to_keep(home: Home) -> None:
    for method in ("full", "lora"):
        write_metrics(bare_run(home, method, method=method), range(1, 21))
    html = comparison.report_on([read(home, "full"), read(home, "lora")])
    assert "2 runs: 2 finished." in html
    assert 'download="report.html" href="data:text/html;base64,' in html


def test_models_of_a_card_are_listed(home: Home) -> None:
    wish = Wish(gpus()["rtx-3060"], max_length=512, only=("HuggingFaceTB/SmolLM2-135M",))
    html = comparison.models_of_card(models_on_card(None, wish), wish.gpu, "sft", 512)
    assert "1 of 88 models fit" in html
    assert "tokens/s" in html
