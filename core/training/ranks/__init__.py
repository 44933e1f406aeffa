"""Ranks: the processes of one training, one for each device, and the leader that starts them.

`leader` starts the ranks with torchrun and says how they ended; `agreement` lets them decide
together; `last_words` finds the one that was the cause. With one device there is one rank and no
leader.
"""

from .last_words import first_cause
from .rank import HEARTBEATS, LEADER_VARIABLE, Rank, devices_asked, report_failure, this_rank

__all__ = [
    "HEARTBEATS",
    "LEADER_VARIABLE",
    "Rank",
    "agreement",
    "devices_asked",
    "first_cause",
    "leader",
    "report_failure",
    "this_rank",
]
