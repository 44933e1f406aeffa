"""Test the plots of a run."""

import json

import pytest

from core import runs
from core.runs import Run
from core.runs.sentences import best_sentence
from core.training.contract.files import write_json
from tests.builders.fake_runs import NewRun
from ui.render import plots
from ui.render import run as run_panel

GIB = 2**30


def with_metrics(run: Run, *rows: dict[str, float]) -> Run:
    """Return the run after it has logged these rows."""
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (run.folder / "metrics.jsonl").write_text(lines)
    return run


@pytest.mark.parametrize("plot", plots.PLOTS.values(), ids=lambda plot: plot.id)
def test_a_plot_draws_its_metrics(new_run: NewRun, plot: plots.Plot) -> None:
    steps = (1, 2, 3)
    rows = [
        {"step": step, **{line.key: step * plot.scale for line in plot.lines}} for step in steps
    ]
    run = with_metrics(new_run(), *rows)
    drawn = plots.figure(plot, run)
    names = [line.name for line in drawn.data if not line.name.startswith("best at step")]
    assert names == [line.name for line in plot.lines]
    assert tuple(drawn.data[0].y) == steps


def test_new_points_keep_the_zoom_on_a_run(new_run: NewRun) -> None:
    run = new_run()
    assert plots.figure(plots.PLOTS["loss"], run).layout.uirevision == run.id


@pytest.mark.parametrize(
    ("capacity_gib", "names"),
    [(3, ["predicted: 2.0 GiB", "card: 3.0 GiB"]), (30, ["predicted: 2.0 GiB"])],
)
def test_the_memory_plot_shows_the_prediction_and_a_card_that_is_near(
    new_run: NewRun, capacity_gib: int, names: list[str]
) -> None:
    run = new_run()
    write_json(run.folder / "estimate.json", {"total_bytes": GIB})
    capacity = {"device_capacity_bytes": capacity_gib * GIB}
    status = {"state": "running", "baseline_bytes": GIB, **capacity}
    write_json(run.folder / "status.json", status)
    levels = plots.figure(plots.PLOTS["memory"], runs.read(run.home, run.id)).layout.shapes
    assert [level.name for level in levels] == names
    assert [level.y0 for level in levels] == [level.y1 for level in levels]
    assert levels[0].y0 == 2
    assert all(level.type == "line" for level in levels)  # the edges of a box fill its own dashes
    assert all(level.showlegend for level in levels)


def test_each_suite_has_a_line_and_the_best_a_star(new_run: NewRun) -> None:
    rows = [{"step": step, "check_identity": step, "check_<i>": 90 - step} for step in (0, 20, 40)]
    run = with_metrics(new_run(), *rows)
    best = {"best_step": 20, "best_metric": "check_<i>", "best_value": 70.0}
    write_json(run.folder / "status.json", {"state": "running", **best})
    drawn = plots.figure(plots.PLOTS["checks"], runs.read(run.home, run.id))
    assert [line.name for line in drawn.data] == ["identity", "&lt;i&gt;", "best at step 20"]
    assert tuple(drawn.data[2].y) == (70.0,)
    said = best_sentence(runs.read(run.home, run.id))
    assert said == "Best at step 20: <i> 70 % (90 % before the training)."


def test_a_run_without_metrics_has_no_plots(new_run: NewRun) -> None:
    assert plots.figures(new_run()) == "{}"


def test_no_run_has_no_plots() -> None:
    assert plots.figures(None) == "{}"


@pytest.fixture(params=[3, 18, 60])
def falling(request: pytest.FixtureRequest, new_run: NewRun) -> Run:
    """Return a run of so many steps whose loss falls half way."""
    half = request.param // 2
    losses = [4.0] * half + [0.00003] * (request.param - half)
    rows = ({"step": step, "loss": loss} for step, loss in enumerate(losses, 1))
    return with_metrics(new_run(), *rows)


def test_the_smoothed_loss_ends_near_the_last_values(falling: Run) -> None:
    assert plots.figure(plots.PLOTS["loss"], falling).data[1].y[-1] < 0.2


def test_the_compared_loss_ends_near_the_last_values(falling: Run) -> None:
    assert plots.comparison([falling]).data[0].y[-1] < 0.2


def test_a_small_loss_keeps_its_digits(falling: Run) -> None:
    assert "<b>3e-05</b>" in run_panel.tiles(falling)
