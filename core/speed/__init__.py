"""Training speed and cost: forecast before a job starts, corrected by the runs that were measured.

`predict_speed` is the door. Pure functions; measures nothing and remembers nothing.
"""

from core.speed import doubling, kernels, passes, rows, work
from core.speed.forecast import BAND, Speed, predict_speed
from core.speed.measured import Measurement, calibrated, mfu, model_flops_per_token
from core.speed.rows import RowStatistics, count_steps, mean_tokens

__all__ = [
    "BAND",
    "Measurement",
    "RowStatistics",
    "Speed",
    "calibrated",
    "count_steps",
    "doubling",
    "kernels",
    "mean_tokens",
    "mfu",
    "model_flops_per_token",
    "passes",
    "predict_speed",
    "rows",
    "work",
]
