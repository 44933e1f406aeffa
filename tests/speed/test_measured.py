"""Measured rates: what they correct, how far the band narrows, how busy the card was."""

from dataclasses import replace

import pytest

from core.job import JobSpec
from core.models import gpus, models
from core.speed import BAND, Measurement, calibrated, mfu, model_flops_per_token
from core.speed.measured import MIN_BAND
from tests.builders.forecasts import LLAMA_8B, predict

MEASURED = (Measurement(1000, 800), Measurement(2000, 1700), Measurement(1000, 900))
"""Ratios 0.8, 0.85 and 0.9."""
MEDIAN = 0.85


def test_measured_rates_correct_the_forecast_by_their_median() -> None:
    forecast = predict(max_steps=100)
    corrected = calibrated(forecast, MEASURED)
    assert corrected.tokens_per_second == pytest.approx(MEDIAN * forecast.tokens_per_second)


@pytest.mark.parametrize("field", ["seconds_per_step", "hours", "usd"])
def test_measured_rates_correct_times_and_costs(field: str) -> None:
    forecast = predict(max_steps=100)
    corrected = getattr(calibrated(forecast, MEASURED), field)
    assert corrected == pytest.approx(getattr(forecast, field) / MEDIAN)


@pytest.mark.parametrize(("number", "band"), [(0, BAND), (1, BAND / 2), (3, 0.9 / MEDIAN - 1)])
def test_measured_rates_narrow_the_band_as_far_as_they_agree(number: int, band: float) -> None:
    assert calibrated(predict(), MEASURED[:number]).band == pytest.approx(band)


def test_the_band_is_never_narrower_than_runs_differ_by_chance() -> None:
    same = [Measurement(1000, 1000)] * 5
    assert calibrated(predict(), same).band == pytest.approx(MIN_BAND)


@pytest.mark.parametrize(
    ("number", "certainty"),
    [
        (0, "± 25 %"),
        (1, "± 12 %, from 1 run like this one"),
        (3, "± 6 %, from 3 runs like this one"),
    ],
)
def test_a_forecast_says_what_it_rests_on(number: int, certainty: str) -> None:
    assert calibrated(predict(), MEASURED[:number]).certainty == certainty


def test_runs_that_measured_nothing_correct_nothing() -> None:
    assert calibrated(predict(), [Measurement(1000, 0)]) == predict()


# Llama-3.1-8B: billions of linear weights in layers and in the head, and attention's GFLOPs forward
# for a row of 2048 tokens: 2 x 2048 x 4096 x 32.
LINEAR = 6.979 + 0.525
ATTENTION = 0.537


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize(
    ("method", "gflop"),
    [("lora", 2 * LINEAR * 2 + 3 * ATTENTION), ("full", 2 * LINEAR * 3 + 3 * ATTENTION)],
)
def test_the_flops_of_a_token_do_not_count_recomputing(
    method: str, gflop: float, checkpointing: bool
) -> None:
    job = JobSpec.parse({"method": method, "gradient_checkpointing": checkpointing})
    flops = model_flops_per_token(job, models()[LLAMA_8B].shape, 2048)
    assert flops == pytest.approx(gflop * 1e9, rel=0.001)


def test_mfu_is_a_share_of_the_rated_speed() -> None:
    job = JobSpec.parse({"method": "lora"})
    share = mfu(13_600, job, models()[LLAMA_8B].shape, gpus()["h200"], 2048)
    gflop_per_token, rated_tflops = 31.6, 989
    assert share == pytest.approx(13_600 * gflop_per_token * 1e9 / (rated_tflops * 1e12), rel=0.01)


def test_a_card_of_unknown_speed_has_no_mfu() -> None:
    card = replace(gpus()["h200"], flops=0.0)
    assert mfu(13_600, JobSpec(), models()[LLAMA_8B].shape, card, 2048) is None
