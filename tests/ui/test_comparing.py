"""Compare methods on the page: side by side, queued, reported; what a card can train."""

import gradio as gr
import pytest

from core.after_training.compare import record
from core.after_training.compare.on_card import Wish, models_on_card
from core.models import gpus
from core.runs import Home, read
from core.runs.listing import list_runs
from core.speed import RowStatistics
from tests.builders.fake_runs import bare_run, write_metrics
from ui.form import first_values
from ui.handlers import Handlers
from ui.handlers.answer import answer_values
from ui.handlers.comparing import variants_of
from ui.render import comparison

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
    assert "Full is left out: needs " in html
    assert "What helps: " in html


def test_the_profile_chooses_for_each_method_again(home: Home) -> None:
    values = {"model": LLAMA, "dataset": "demo", "gpu": "rtx-4090", "profile": "fastest"}
    answer = answer_to(home, **values)
    found = {each.point.method: each for each in variants_of(answer)}
    resolved = found["qlora"].resolved
    assert resolved is not None
    assert resolved.plan.choices


@pytest.mark.usefixtures("fake_program")
def test_one_run_of_each_method_is_queued(home: Home) -> None:
    handlers = Handlers(home)
    updates = handlers.comparing.on_compare(answer_to(home))
    handlers.close()
    assert "Queued 3 runs" in str(updates["compare_message"])
    assert updates["tabs"] == gr.update(selected="runs")
    methods = {run.job.method for run in list_runs(home)}
    assert methods == {"full", "lora", "qlora"}
    assert len(record.list_comparisons(home)) == 1


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
