"""Report: its numbers are those of the run folders, its text is escaped, chance is named."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from core.after_training.compare import Comparison, Trial, record
from core.after_training.compare.report import (
    cautions,
    findings,
    html_of,
    summary_of,
    summary_of_runs,
    svg,
    write_report,
)
from core.after_training.compare.report.chance import contrasts
from core.after_training.compare.report.markdown import markdown_of
from core.runs import Home, read
from core.training.contract.files import write_json
from tests.builders.fake_runs import bare_run, write_metrics

SIZES = ("wide", "narrow")
HOSTILE = "<script>alert(1)</script>|`x`"


def comparison_of(home: Home, losses: dict[str, tuple[float, ...]]) -> Comparison:
    """Return a comparison of finished runs whose evaluation losses are these, seed by seed."""
    record.folder_of(home).mkdir(exist_ok=True)
    trials = []
    for method, values in losses.items():
        for seed, value in enumerate(values):
            name = f"{method}-{seed}"
            folder = bare_run(home, name, method=method, seed=seed)
            write_metrics(folder, range(1, 21))
            write_metrics(folder, range(20, 21), eval_loss=value)
            trials.append(Trial(method, seed, fields={"method": method}, id=name))
    comparison = Comparison("20261129-120000", 0.0, "Which?", "python app.py", tuple(trials))
    record.save(home, comparison)
    return comparison


def test_numbers_are_those_of_the_run_folders(home: Home) -> None:
    comparison = comparison_of(home, {"full": (1.25,), "lora": (1.5,)})
    written = write_report(home, comparison)
    rows = json.loads(written.path.with_suffix(".json").read_text())["runs"]
    for row in rows:
        run = read(home, row["id"])
        assert row["loss"] == run.loss
        assert row["seconds"] == run.seconds
        assert row["eval_loss"] == run.curves()["eval_loss"].values[-1]


def test_the_page_shows_the_losses(home: Home) -> None:
    written = write_report(home, comparison_of(home, {"full": (1.25,), "lora": (1.5,)}))
    text = written.path.read_text()
    assert "<td>1.250</td>" in text
    assert "<td>1.500</td>" in text


def test_the_page_needs_nothing_else(home: Home) -> None:
    text = html_of(summary_of(home, comparison_of(home, {"full": (1.25,), "lora": (1.5,)})))
    for mark in ("http:", "https:", "<link", "<script", "src=", "@import"):
        assert mark not in text


def test_every_part_that_scrolls_is_reached_by_keyboard(home: Home) -> None:
    text = html_of(summary_of(home, comparison_of(home, {"full": (1.25,), "lora": (1.5,)})))
    assert text.count("tabindex") == len(re.findall(r"class=.scrolls. tabindex=.0.", text))
    assert len(re.findall(r"class=.scrolls.", text)) == text.count("tabindex") > 1


def test_every_part_that_scrolls_has_a_name(home: Home) -> None:
    text = html_of(summary_of(home, comparison_of(home, {"full": (1.25,), "lora": (1.5,)})))
    parts = re.findall(r"<div class=.scrolls.[^>]*>", text)
    assert len(parts) > 1
    for part in parts:
        assert re.search(r"aria-label=.\w", part)


def test_every_plot_is_drawn_for_a_phone_too(home: Home) -> None:
    text = html_of(summary_of(home, comparison_of(home, {"full": (1.25,), "lora": (1.5,)})))
    names = {name: re.findall(rf'<svg class="{name}".*?aria-label="(.*?)"', text) for name in SIZES}
    assert names["narrow"] == names["wide"] != []


def test_bars_of_a_phone_have_their_labels_above_them() -> None:
    bars = [svg.Bar("full, learning rate 2e-4, rank 16", {"weights": 100.0}, "100 MiB")]
    drawn = svg.stacked_bars(bars, None, 1, "memory", svg.NARROW)
    label = re.search(r'<tspan x="0" y="(\d+)">', drawn)
    bar = re.search(r'<rect x="[\d.]+" y="(\d+)"', drawn)
    assert label
    assert bar
    assert int(label[1]) < int(bar[1])


def test_the_best_settings_are_a_job_file(home: Home) -> None:
    written = write_report(home, comparison_of(home, {"full": (1.25,), "lora": (1.5,)}))
    assert isinstance(written.best, Path)
    assert json.loads(written.best.read_text()) == {"method": "full"}


@pytest.mark.parametrize("stage", ["kto", "dpo"])
def test_a_loss_that_depends_on_the_batch_is_named(home: Home, stage: str) -> None:
    bare_run(home, "first", stage=stage)
    bare_run(home, "second", stage=stage)
    said = findings(summary_of_runs([read(home, "first"), read(home, "second")]))
    assert any("depends on how many rows" in each for each in said) is (stage == "kto")


def test_one_seed_claims_no_difference(home: Home) -> None:
    summary = summary_of(home, comparison_of(home, {"full": (1.0,), "lora": (2.0,)}))
    assert any("With one seed" in said for said in findings(summary))


def test_a_difference_that_every_seed_shows_is_named(home: Home) -> None:
    losses = {"full": (1.0, 1.5, 1.2), "lora": (1.21, 1.7, 1.41)}
    said = findings(summary_of(home, comparison_of(home, losses)))
    assert any("Full has a lower evaluation loss than LoRA: by 0.207" in each for each in said)


def test_a_difference_within_chance_is_called_so(home: Home) -> None:
    losses = {"full": (1.0, 1.5, 1.2), "lora": (1.4, 1.1, 1.3)}
    said = findings(summary_of(home, comparison_of(home, losses)))
    assert any(each.startswith("No difference beyond chance") for each in said)


def test_a_seed_that_is_harder_for_all_is_no_difference() -> None:
    (found,) = contrasts({"a": {1: 1.0, 2: 5.0}, "b": {1: 1.1, 2: 5.1}})
    assert found.difference == pytest.approx(0.1)
    assert found.margin == pytest.approx(0.0, abs=1e-9)


def test_what_happened_to_every_run_is_said(home: Home) -> None:
    comparison = comparison_of(home, {"full": (1.25,), "lora": (1.5,)})
    write_json(home.runs / "lora-0" / "status.json", {"state": "failed", "error": "Loss is NaN."})
    left_out = Trial("qlora", 0, left_out="needs 30.0 GiB", fix="a card such as A40")
    cut_off = comparison.with_trial(2, left_out)
    text = html_of(summary_of(home, cut_off))
    assert "Loss is NaN." in text
    assert "needs 30.0 GiB. What would help: a card such as A40." in text


def test_text_of_users_is_escaped(home: Home) -> None:
    comparison = comparison_of(home, {"full": (1.25,), "lora": (1.5,)})
    sample = {"step": 0, "prompt": HOSTILE, "answer": HOSTILE}
    (home.runs / "full-0" / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    summary = summary_of(home, comparison)
    assert "<script" not in html_of(summary)
    assert "<script" not in markdown_of(summary)


def test_damaged_files_cost_their_numbers_alone(home: Home) -> None:
    comparison = comparison_of(home, {"full": (1.25,), "lora": (1.5,)})
    folder = home.runs / "full-0"
    (folder / "estimate.json").write_text("[3")
    (folder / "checks").mkdir()
    (folder / "checks" / "bad.json").write_text('{"total": 3, "before": 9, "after": null}')
    assert "<td>1.250</td>" in html_of(summary_of(home, comparison))


def test_checks_have_intervals(home: Home) -> None:
    comparison = comparison_of(home, {"full": (1.25,), "lora": (1.5,)})
    checks = home.runs / "full-0" / "checks"
    checks.mkdir()
    write_json(checks / "story.json", {"name": "story", "total": 10, "before": 0, "after": 7})
    text = html_of(summary_of(home, comparison))
    assert "7 of 10 (40 to 89 %)" in text
    assert "No run was checked" not in text


def test_missing_checks_are_said(home: Home) -> None:
    said = cautions(summary_of(home, comparison_of(home, {"full": (1.25,), "lora": (1.5,)})))
    assert any(each.startswith("No run was checked") for each in said)


def test_reward_models_are_not_sent_to_a_check_that_refuses_them(home: Home) -> None:
    bare_run(home, "first", stage="reward")
    bare_run(home, "second", stage="reward")
    said = cautions(summary_of_runs([read(home, "first"), read(home, "second")]))
    assert not any("check-model" in each for each in said)
    assert any(each.startswith("A reward model writes no answers") for each in said)


def test_runs_chosen_by_hand_are_grouped_by_their_seed(home: Home) -> None:
    comparison_of(home, {"full": (1.25, 1.3), "lora": (1.5,)})
    runs = [read(home, name) for name in ("full-0", "full-1", "lora-0")]
    assert [len(group.runs) for group in summary_of_runs(runs).groups] == [2, 1]


def test_more_groups_than_colours_show_the_best_against_the_rest(home: Home) -> None:
    trials = []
    record.folder_of(home).mkdir(exist_ok=True)
    for place in range(9):
        folder = bare_run(home, f"run-{place}", method="lora", lora_r=place + 1)
        write_metrics(folder, range(1, 21), eval_loss=5 - place / 2)
        trials.append(Trial("lora", 0, {"lora_r": place + 1}, id=f"run-{place}"))
    comparison = Comparison("20261129-120000", 0.0, "Which?", "compare", tuple(trials))
    text = html_of(summary_of(home, comparison))
    assert "LoRA, lora_r 9</li>" in text
    assert "the other 8</li>" in text
    assert text.count("LoRA, lora_r 4</li>") == 0
    assert "<th scope='col'>lora_r</th>" in text  # settings go across, the many groups down


def test_learning_rate_that_varies_is_not_called_one(home: Home) -> None:
    comparison = comparison_of(home, {"full": (1.0,), "lora": (2.0,)})
    said = "One learning rate each: with another, the order may change."
    assert said in cautions(summary_of(home, comparison))
    varied = replace(comparison.trials[0], settings={"learning_rate": 1e-3})
    assert said not in cautions(summary_of(home, comparison.with_trial(0, varied)))


def test_losses_of_other_models_are_not_compared(home: Home) -> None:
    bare_run(home, "small", model="HuggingFaceTB/SmolLM2-135M")
    bare_run(home, "large", model="meta-llama/Llama-3.1-8B")
    said = cautions(summary_of_runs([read(home, "small"), read(home, "large")]))
    assert any("differ in model" in each for each in said)


def test_other_rows_of_another_seed_are_not_a_difference(home: Home) -> None:
    comparison = comparison_of(home, {"full": (1.0, 2.0), "lora": (1.1, 2.1)})
    for name in ("full-0", "full-1", "lora-0", "lora-1"):
        path = home.runs / name / "job.json"
        job = json.loads(path.read_text()) | {"dataset_sha256": name[-1] * 64}
        path.write_text(json.dumps(job))
    said = cautions(summary_of(home, comparison))
    assert not any("differ in dataset" in each for each in said)


def test_group_whose_hard_seed_failed_is_not_the_best(home: Home) -> None:
    summary = summary_of(home, comparison_of(home, {"full": (1.0, 5.0), "lora": (1.2,)}))
    assert summary.best is not None
    assert summary.best.label == "Full"


def test_speeds_within_chance_are_called_so(home: Home) -> None:
    comparison = comparison_of(home, {"full": (1.0, 1.5), "lora": (1.1, 1.6)})
    rates = {"full-0": 100, "full-1": 200, "lora-0": 190, "lora-1": 100}
    for name, rate in rates.items():
        write_metrics(home.runs / name, range(21, 60), tokens_per_second=rate)
    said = findings(summary_of(home, comparison))
    assert any("with 145; no difference beyond chance." in each for each in said)


def test_what_the_numbers_of_a_table_are_is_said(home: Home) -> None:
    comparison = comparison_of(home, {"full": (1.0, 1.5), "lora": (1.1, 1.6)})
    said = "★ lowest evaluation loss. Mean over the seeds ± their standard deviation."
    assert said in html_of(summary_of(home, comparison))
    assert said in markdown_of(summary_of(home, comparison))


def test_deleted_run_is_said_to_be_deleted(home: Home) -> None:
    comparison = comparison_of(home, {"full": (1.25,), "lora": (1.5,)})
    shutil.rmtree(home.runs / "lora-0")
    written = write_report(home, comparison)
    assert "Its folder is gone: it was deleted." in written.path.read_text()
    assert "1 finished, 1 deleted" in findings(written.summary)[0]


def test_run_without_a_finite_loss_is_not_the_best(home: Home) -> None:
    comparison = comparison_of(home, {"full": (1.25,), "lora": (1.5,)})
    with (home.runs / "full-0" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "eval_loss": NaN}\n{"step": 22, "nonfinite": ["eval_loss"]}\n')
    summary = summary_of(home, comparison)
    assert summary.best is not None
    assert summary.best.label == "LoRA"
    assert ">nan<" not in html_of(summary).lower()
