"""Faults in ranks of real trainings: one blocks, pauses or waits where the others do not."""

from dataclasses import dataclass
from pathlib import Path

from core.training.ranks.marks import LEAST_SECONDS, SECONDS_UNMEASURED
from core.training.ranks.standstill import SECONDS_BEFORE_LOOK

LEAST, UNMEASURED = 6.0, 40.0
"""Limits of the tests, in seconds."""
PROGRAM = """
import threading
import time

import torch.distributed as dist
from torch.utils.data._utils.fetch import _MapDatasetFetcher

from .loop.trainer import MonitoredTrainer

FAULTS = {faults}
OWNERS = {{"trainer": MonitoredTrainer, "loader": _MapDatasetFetcher}}
steps = []

def install(owner, name, rank, step, seconds):
    original, pauses = getattr(owner, name), []

    def faulty(self, *arguments, **settings):
        if dist.get_rank() == rank and len(steps) >= step and not pauses:
            pauses.append(seconds)
            if seconds == "barrier":
                dist.barrier()  # which the others never join
            elif seconds == "for ever":
                threading.Event().wait()
            else:
                time.sleep(seconds)
        return original(self, *arguments, **settings)

    setattr(owner, name, faulty)

def count_step(self, *arguments, **settings):
    steps.append(1)
    return begin_step(self, *arguments, **settings)

begin_step, MonitoredTrainer.get_batch_samples = MonitoredTrainer.get_batch_samples, count_step
for rank, step, seconds, owner, name in FAULTS:
    install(OWNERS[owner], name, rank, step, seconds)
"""
PLACES = {
    "data": ("loader", "fetch"),
    "forward": ("trainer", "compute_loss"),
    "eval": ("trainer", "prediction_step"),
    "save": ("trainer", "_save_checkpoint"),
    "step": ("trainer", "get_batch_samples"),
}
"""Place -> what is called there."""
CALL = "    from . import faults\n"
BEFORE_TRAINING = "    _silence_libraries()\n"


@dataclass(frozen=True)
class Fault:
    """What happens once in a training."""

    place: str
    step: int
    """Steps that this process has begun before."""
    seconds: float | str = "for ever"
    """Length of a pause; `for ever`, or in a `barrier` that the other ranks never join."""
    rank: int = 1


def let_fail(run: Path, *faults: Fault) -> None:
    """Build faults into the program of a run."""
    rows = [(each.rank, each.step, each.seconds, *PLACES[each.place]) for each in faults]
    (run / "training" / "faults.py").write_text(PROGRAM.format(faults=rows))
    replace(run / "training" / "__main__.py", BEFORE_TRAINING, BEFORE_TRAINING + CALL)


def repair(run: Path) -> None:
    """Take the faults out of the program of a run."""
    replace(run / "training" / "__main__.py", CALL, "")


def shorten_limits(run: Path, unmeasured: float = UNMEASURED) -> None:
    """Let the ranks of a run be stuck within seconds."""
    ranks = run / "training" / "ranks"
    replace(ranks / "marks.py", f"= {LEAST_SECONDS}", f"= {LEAST}")
    replace(ranks / "marks.py", f"= {SECONDS_UNMEASURED}", f"= {unmeasured}")
    replace(ranks / "standstill.py", f"= {SECONDS_BEFORE_LOOK}", "= 2.0")


def replace(file: Path, old: str, new: str) -> None:
    """Replace a part of a copied program. Raises ValueError if it is not there."""
    text = file.read_text()
    if old not in text:
        raise ValueError(old)
    file.write_text(text.replace(old, new, 1))
