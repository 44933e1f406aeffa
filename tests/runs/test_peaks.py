"""One peak of a run: the same predicted and measured number wherever it stands."""

import json
from dataclasses import replace

import pytest

from core import runs
from core.after_training.differences import compare_runs
from core.memory import estimate, refine
from core.models import gpus
from core.models.presets import demo_fields
from core.resolve import ResolvedJob, default_fields, resolve
from core.runs import Home, Run
from core.runs.past_runs import compared_peaks, forecast, past_runs
from core.runs.sentences import memory_rows, peak_memory
from core.speed import RowStatistics
from core.training.contract.files import write_json
from core.wording import memory, memory_parts, verdict_sentence
from tests.builders.advice_cases import CPU, LLAMA_8B, job_of
from tests.builders.fake_runs import NewRun
from ui.handlers.answer import answer_values
from ui.render import history, plots
from ui.render import run as run_panel
from ui.terminal.commands import estimate as terminal_estimate
from ui.terminal.runs import manage_runs

MIB, GIB = 2**20, 2**30
MEASURED = 639 * MIB
ON_CPU = {
    "state": "finished",
    "device": "CPU",
    "baseline_bytes": 495 * MIB,
    "phase_peak_bytes": {"load": 30 * MIB, "backward": 140 * MIB},
    "peak_process_bytes": MEASURED,
}
ON_GPU = {
    "state": "finished",
    "baseline_bytes": 0,
    "phase_peak_bytes": {"load": 15 * GIB, "backward": 17 * GIB},
    "peak_allocated_bytes": 17 * GIB,
    "peak_reserved_bytes": 18 * GIB,
    "peak_device_bytes": 19 * GIB,
}
PREDICTED_ON_GPU = {
    "total_bytes": 20 * GIB,
    "peak_allocated_bytes": 16 * GIB,
    "peak_reserved_bytes": 17 * GIB,
    "phases": {"load": 15 * GIB, "backward": 16 * GIB},
    "components": [{"name": "cuda_context", "bytes": GIB, "note": ""}],
}


def demo_job() -> ResolvedJob:
    """Return the job of the demo, with the length of its rows."""
    rows = RowStatistics(311, mean_tokens=50, p95_tokens=70, max_tokens=87)
    return resolve(demo_fields(), rows=rows)


@pytest.fixture
def on_cpu(home: Home, new_run: NewRun) -> Run:
    """Return a finished run of the demo on a processor."""
    run = new_run()
    write_json(run.folder / "estimate.json", forecast(home, demo_job()))
    write_json(run.folder / "status.json", ON_CPU)
    return runs.read(home, run.id)


@pytest.fixture
def on_gpu(home: Home, new_run: NewRun) -> Run:
    run = new_run()
    write_json(run.folder / "estimate.json", PREDICTED_ON_GPU)
    write_json(run.folder / "status.json", ON_GPU)
    return runs.read(home, run.id)


def _levels(run: Run) -> list[str]:
    return [level.name for level in plots.figure(plots.PLOTS["memory"], run).layout.shapes]


def test_the_list_in_the_terminal_shows_what_the_page_shows(
    on_cpu: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    manage_runs(home=str(on_cpu.home.path))
    printed = " ".join(capsys.readouterr().out.split())
    for heading in ("model", "method", "loss", "peak", "when"):
        assert heading in printed
    assert on_cpu.id in printed
    assert memory(MEASURED) in printed
    assert "just now" in printed


def test_the_measured_peak_is_one_number_everywhere(on_cpu: Run) -> None:
    shown = memory(MEASURED)
    assert peak_memory(on_cpu) == f"{shown} process"
    assert shown in run_panel.tiles(on_cpu)
    assert shown in run_panel.memory_table(on_cpu)
    assert shown in history.run_list([on_cpu], 1, "", ())
    assert f"peak: {shown} process" in _levels(on_cpu)
    results = {each.name: each.values for each in compare_runs([on_cpu, on_cpu])}
    assert results["peak_bytes"] == (MEASURED, MEASURED)


def test_the_predicted_peak_is_that_of_the_verdict_everywhere(home: Home, on_cpu: Run) -> None:
    assert on_cpu.predicted_bytes is not None
    shown = memory(on_cpu.predicted_bytes)
    assert f"{shown} of" in verdict_sentence(demo_job().estimate())
    assert f"predicted: {shown}" in _levels(on_cpu)
    assert f"{shown} predicted" in run_panel.tiles(on_cpu)
    assert [row[1] for row in memory_rows(on_cpu)] == [shown]


def test_a_processor_has_one_row_of_like_with_like(on_cpu: Run) -> None:
    assert compared_peaks(on_cpu) == {"process": (on_cpu.predicted_bytes, MEASURED)}


def test_the_first_run_of_the_demo_is_predicted_well(on_cpu: Run) -> None:
    (predicted, measured) = compared_peaks(on_cpu)["process"]
    assert predicted == pytest.approx(measured, rel=0.1)


def test_past_runs_on_a_processor_correct_the_next_prediction(home: Home, on_cpu: Run) -> None:
    resolved = demo_job()
    assert refine(resolved.estimate(), past_runs(home, resolved)).total_bytes == MEASURED


def test_a_run_predicted_too_high_makes_no_prediction_too_low(home: Home, on_cpu: Run) -> None:
    estimated = json.loads((on_cpu.folder / "estimate.json").read_text())
    estimated["peak_allocated_bytes"] = 300 * MIB
    write_json(on_cpu.folder / "estimate.json", estimated)
    resolved = demo_job()
    refined = refine(resolved.estimate(), past_runs(home, resolved))
    assert refined.context.expected_bytes == ON_CPU["baseline_bytes"]


TOO_LARGE = {"model": "meta-llama/Llama-3.1-70B", "method": "full", "gpu": "local"}


def test_after_past_runs_the_page_offers_savings_of_the_total(home: Home, on_cpu: Run) -> None:
    values = {**default_fields(TOO_LARGE["model"], "full"), **TOO_LARGE}
    answer = answer_values(home, lambda _found: None, values)
    resolved = answer.require()
    assert resolved.past
    assert answer.estimate
    total = answer.estimate.total_bytes
    assert total != replace(resolved, past=()).estimate().total_bytes
    fixes = resolved.fixes()
    assert fixes
    assert {fix.total_bytes + fix.saves_bytes for fix in fixes} == {total}


def test_after_past_runs_the_terminal_offers_savings_of_the_total(
    home: Home, on_cpu: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = {f"field_{name}": value for name, value in TOO_LARGE.items()}
    terminal_estimate(home=str(home.path), json=True, **fields)
    printed = json.loads(capsys.readouterr().out)
    totals = {fix["total_bytes"] + fix["saves_bytes"] for fix in printed["fixes"]}
    assert totals == {printed["total_bytes"]}


def test_a_run_keeps_the_corrected_number_of_its_verdict(home: Home, on_cpu: Run) -> None:
    assert forecast(home, demo_job())["total_bytes"] == MEASURED


def test_a_gpu_compares_allocated_reserved_and_card(on_gpu: Run) -> None:
    assert compared_peaks(on_gpu) == {
        "load": (15 * GIB, 15 * GIB),
        "backward": (16 * GIB, 17 * GIB),
        "reserved": (17 * GIB, 18 * GIB),
        "card": (20 * GIB, 19 * GIB),
    }


def test_a_peak_on_a_gpu_says_what_it_counts(on_gpu: Run) -> None:
    assert peak_memory(on_gpu) == "17.0 GiB allocated"
    assert "Peak memory, allocated" in run_panel.tiles(on_gpu)


def test_an_early_run_on_a_processor_adds_its_program(home: Home, new_run: NewRun) -> None:
    run = new_run()
    write_json(run.folder / "estimate.json", {"total_bytes": 80 * MIB})
    early = {name: value for name, value in ON_CPU.items() if name != "peak_process_bytes"}
    write_json(run.folder / "status.json", early)
    run = runs.read(home, run.id)
    assert run.predicted_bytes == (80 + 495) * MIB
    assert run.peak_bytes == (495 + 140) * MIB


def test_the_parts_on_a_processor_name_python_and_its_libraries() -> None:
    titles = [part.title for part in memory_parts(estimate(job_of(), LLAMA_8B, CPU))]
    assert "Python and libraries" in titles
    assert "CUDA context" not in titles


def test_the_parts_on_a_gpu_name_the_context() -> None:
    titles = [part.title for part in memory_parts(estimate(job_of(), LLAMA_8B, gpus()["t4"]))]
    assert "CUDA context" in titles
