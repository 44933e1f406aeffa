"""Forecasts of presets, asked for by field values."""

from core.job import JobSpec
from core.models import Gpu, ModelShape, gpus, models
from core.speed import RowStatistics, Speed, predict_speed

LLAMA_3B = "meta-llama/Llama-3.2-3B"
LLAMA_8B = "meta-llama/Llama-3.1-8B"
LLAMA_2_7B = "meta-llama/Llama-2-7b-hf"


def predict(
    model: str | ModelShape = LLAMA_8B,
    gpu: str | Gpu = "a100-80gb",
    rows: RowStatistics | None = None,
    **fields: object,
) -> Speed:
    """Return the forecast of a job with these fields, on a card that has one."""
    shape = models()[model].shape if isinstance(model, str) else model
    card = gpus()[gpu] if isinstance(gpu, str) else gpu
    speed = predict_speed(JobSpec.parse(fields), shape, card, rows)
    assert speed
    return speed
