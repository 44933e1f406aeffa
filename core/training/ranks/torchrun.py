"""torchrun in a process of its own, which notes the rank that failed first.

torchrun ends the other ranks as soon as one has failed, so that a moment later all are gone; only
torchrun itself has seen which was the first. Imports torch only in that process.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from ..contract.files import write_json
from .rank import HEARTBEATS, read_words

NOTE = Path(HEARTBEATS) / "first_failure.json"
"""Place of the note in the run folder."""


def command(arguments: Sequence[str], num_ranks: int) -> list[str]:
    """Return the command that starts the ranks on this machine, from within the run folder."""
    options = ["--standalone", "--nproc-per-node", str(num_ranks), "-m", "training"]
    return [sys.executable, "-m", "training.ranks.torchrun", *options, *arguments]


def first_failure(folder: Path) -> int | None:
    """Return the rank that failed first in a run folder; None if torchrun named none."""
    rank = read_words(folder / NOTE).get("rank")
    return rank if isinstance(rank, int) else None


def main() -> None:
    """Run torchrun in a run folder. Raises ChildFailedError, as torchrun does, if a rank fails."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    try:
        torchrun(sys.argv[1:])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        write_json(NOTE, {"rank": rank, "exit_code": failure.exitcode})
        raise


if __name__ == "__main__":
    main()
