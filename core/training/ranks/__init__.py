"""Ranks: the processes of one training, one for each device, and the leader that starts them.

`leader` starts the ranks of one machine with torchrun, watches them, and says how they ended. Over
several machines a `guard` beside each rank does so. `standstill` sees a rank that gets no further,
`stuck` the one that the others wait for. `agreement` lets the ranks decide together;
`last_words` finds the one that was the cause. With one device there is one rank, and neither.
"""

from .beats import end_as_told, guarded
from .last_words import first_cause
from .marks import Marks
from .rank import HEARTBEATS, LEADER_VARIABLE, Rank, devices_asked, report_failure, this_rank
from .standstill import Standstill

__all__ = [
    "HEARTBEATS",
    "LEADER_VARIABLE",
    "Marks",
    "Rank",
    "Standstill",
    "agreement",
    "devices_asked",
    "end_as_told",
    "first_cause",
    "guarded",
    "leader",
    "report_failure",
    "this_rank",
]
