"""Files that the training program writes while it runs: status, metrics, samples and log."""

from .log import limit_log_size
from .quiet_files import QuietRunFiles
from .run_files import RunFiles, say
from .stop_request import StopRequest

__all__ = ["QuietRunFiles", "RunFiles", "StopRequest", "limit_log_size", "progress", "say"]
