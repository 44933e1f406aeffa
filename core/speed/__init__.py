"""How fast a job trains and what it costs: forecast before it starts, corrected by the runs that were measured.

`predict_speed` is the door. Pure functions; measures nothing and remembers nothing.
"""

from core.speed.forecast import BAND, Speed, predict_speed
from core.speed.measured import Measurement, calibrated, error_of, mfu, model_flops_per_token
from core.speed.rows import RowStatistics, mean_tokens
from core.speed.work import OPTIMIZER_TRAFFIC

__all__ = [
    "BAND",
    "OPTIMIZER_TRAFFIC",
    "Measurement",
    "RowStatistics",
    "Speed",
    "calibrated",
    "error_of",
    "mean_tokens",
    "mfu",
    "model_flops_per_token",
    "predict_speed",
]
