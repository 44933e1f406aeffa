"""Curves of metrics.jsonl: complete, thinned, and read only once."""

import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from core.runs import Home
from core.runs.curves import GrowingCurve, read_curves
from tests.builders.fake_runs import (
    bare_run,
    write_metrics,
)


def test_curves_have_every_key_in_the_order_of_the_file(home: Home) -> None:
    folder = bare_run(home, "a")
    rows = [
        {"step": 1, "loss": 3},
        {"step": 2, "eval_loss": 2.5, "note": "x"},
        {"loss": 9},
        {"step": 2, "loss": 2},
    ]
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows) + '{"step": 3, "lo'
    )
    curves = read_curves(folder)
    assert curves.keys() == {"loss", "eval_loss"}
    assert curves["loss"].steps.tolist() == [1, 2]
    assert curves["loss"].values.tolist() == [3, 2]
    assert curves["eval_loss"].values.tolist() == [2.5]


def test_new_lines_are_added_and_a_replaced_file_is_read_again(home: Home) -> None:
    folder = bare_run(home, "a")
    write_metrics(folder, range(1, 11))
    assert len(read_curves(folder)["loss"].values) == 10
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 11, "lo')
        file.flush()
        assert len(read_curves(folder)["loss"].values) == 10
        file.write(b'ss": 5}\n')
    assert read_curves(folder)["loss"].steps.tolist() == list(range(1, 12))
    kept = b"".join((folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)[:6])
    (folder / "metrics.new").write_bytes(kept)
    (folder / "metrics.new").replace(folder / "metrics.jsonl")  # as a resumed run does
    write_metrics(folder, range(7, 30))
    assert read_curves(folder)["loss"].steps.tolist() == list(range(1, 30))
    (folder / "metrics.jsonl").unlink()
    assert not read_curves(folder)


def test_a_file_rewritten_in_place_is_read_again(home: Home) -> None:
    folder = bare_run(home, "a")
    write_metrics(folder, range(1, 100))
    read_curves(folder)
    (folder / "metrics.jsonl").write_bytes(b"")
    write_metrics(folder, range(1001, 1200))
    assert read_curves(folder)["loss"].steps[0] == 1001


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5000), st.integers(10, 300))
def test_a_thinned_curve_keeps_ends_maxima_and_minima(values: list[float], max_points: int) -> None:
    curve = GrowingCurve()
    curve.append(np.arange(len(values), dtype=float), np.array(values))
    thin = curve.thinned(max_points)
    assert len(thin.values) <= max_points
    assert np.all(np.diff(thin.steps) > 0)
    assert (thin.values.max(), thin.values.min()) == (max(values), min(values))
    assert (thin.values[0], thin.values[-1]) == (values[0], values[-1])
    assert all(
        values[int(step)] == value for step, value in zip(thin.steps, thin.values, strict=True)
    )


def test_gaps_of_a_long_curve_stay_gaps(home: Home) -> None:
    curve = GrowingCurve()
    values = np.ones(100_000)
    values[5000:5010] = np.nan
    curve.append(np.arange(100_000.0), values)
    assert np.isnan(curve.thinned(2000).values).any()
    assert len(curve.thinned(2000).values) <= 2000


def test_a_long_curve_is_complete(home: Home) -> None:
    folder = bare_run(home, "a")
    write_metrics(folder, range(20_000), grad_norm=1.5, tokens_per_second=3000.25)
    curves = read_curves(folder, max_points=100_000)
    assert curves["loss"].steps.tolist() == list(range(20_000))
    assert curves["loss"].values.tolist() == [step % 7 for step in range(20_000)]
    assert len(read_curves(folder)["loss"].values) <= 2000
