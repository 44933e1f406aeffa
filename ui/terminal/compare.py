"""`python app.py compare`: one job several ways, one report. Prints; decides nothing."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from core import report
from core.compare import (
    Budget,
    Comparison,
    Study,
    Variant,
    conduct,
    on_other_cards,
    plan_variants,
    record,
)
from core.job import Problem, SpecError
from core.models import gpus
from core.resolve import resolve
from core.runs import Home, Run, launch, queue
from core.training.contract.methods import METHODS
from core.wording import (
    duration,
    memory,
    memory_parts,
    rough_duration,
    speed_sentence,
    state_sentence,
    verdict_sentence,
)
from ui.terminal.follow import interrupts
from ui.terminal.job_fields import RowsOf, TrainingJob, fields_of_job
from ui.terminal.printing import out, print_json, say, table, wide_table

DEFAULT_METHODS = "full,lora,qlora"
SECONDS_BETWEEN_UPDATES = 0.5
EXIT_CODES = {"failed": 1, "interrupted": 1, "stopped": 130}
"""State of a run -> exit code of the comparison; the first that occurs counts."""
