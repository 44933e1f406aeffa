"""Submission: what a run folder keeps of a cluster: the job's id, and what was last said of it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from core.runs.engines.placement import TITLES, Placement
from core.runs.files import read_json
from core.training.contract.files import write_json
from core.training.contract.typed_json import WrongType, types_of, value_as

FILE = "cluster.json"
LOCK = "sending.lock"
SECONDS_TO_LOCK = 5
"""Others hold it for moments, to see whether it is held."""
Stage = Literal["sending", "lost", "unsent", "waiting", "running", "ended"]
"""`sending`: the cluster has not answered yet, so there is no id of a job. `lost`: the program that
was sending it has died before, so there will be none. `unsent`: the cluster has not taken a new
run, which keeps where it shall train."""


@dataclass(frozen=True)
class ClusterState:
    """State of a job, as its cluster last said."""

    stage: Stage = "waiting"
    word: str = ""
    """The cluster's own word, such as PENDING."""
    reason: str = ""
    """The cluster's own reason, such as Priority; or why it does not answer."""
    meaning: str = ""
    """What that means, in plain words; "" if it explains itself."""
    ending: Literal["", "failed", "interrupted"] = ""
    """State of a run whose program could not say itself how it ended."""
    cause: str = ""
    """Name of the failure, as in failures.CAUSES."""
    is_silent: bool = False
    """True while the cluster does not answer: the rest is what it said before."""
    ended: float = 0.0
    """Unix seconds at which the end was first seen."""

    @property
    def words(self) -> str:
        """State and reason as the cluster calls them, such as "PENDING (Priority)"."""
        if self.reason:
            return f"{self.word or 'submitted'} ({self.reason})"
        return self.word or "submitted"


@dataclass(frozen=True)
class Submission:
    """Job of a cluster that trains a run."""

    folder: Path
    """Folder of the run."""
    placement: Placement
    job_id: str = ""
    """"" where the user starts the programs by hand."""
    submitted: float = 0.0
    """Unix seconds."""
    folder_inode: int = 0
    """Number of the folder on its disk: a copy of it has another, and no job."""
    state: ClusterState = field(default_factory=ClusterState)

    @property
    def name(self) -> str:
        """Name by which users know the job."""
        if self.job_id:
            return f"{self.placement.title} job {self.job_id}"
        return self.placement.title

    @property
    def sentence(self) -> str:
        """Job, and what its cluster says of it."""
        return f"{self.name}: {self.state.words}"

    @property
    def explanation(self) -> str:
        """Job, what its cluster says of it, and what that means."""
        return ", ".join(filter(None, (self.sentence, self.state.meaning)))

    @property
    def silence(self) -> str:
        """Sentence on a cluster that does not answer, "" for one that does."""
        if self.state.is_silent:
            return f"{self.placement.title} does not answer: {self.state.reason}."
        if self.state.stage == "lost":
            return f"The program that sent it ended before {self.placement.title} answered."
        return ""

    @property
    def has_answer(self) -> bool:
        """True once the cluster has said which job it is."""
        return self.state.stage not in ("sending", "lost", "unsent")

    @property
    def was_not_taken(self) -> bool:
        """True for a new run that the cluster refused, or did not answer in time."""
        return self.state.stage == "unsent"

    def to_json(self) -> dict[str, object]:
        """Return the fields as the file and `runs list --json` hold them."""
        fields = asdict(self)
        del fields["folder"]
        return fields


def read_submission(folder: Path) -> Submission | None:
    """Return the job of a run folder. None if it trains here, is a copy, or the file is damaged or
    of an engine that this version does not know."""
    found = _read(folder)
    if found and found.state.stage == "sending" and not is_being_sent(folder):
        found = _read(folder)  # again: the answer may have come in between
        if found and found.state.stage == "sending":
            return replace(found, state=ClusterState("lost", "no answer"))
    return found


def _read(folder: Path) -> Submission | None:
    fields = read_json(folder / FILE)
    try:
        inode = folder.stat().st_ino
    except OSError:  # deleted in the meantime
        return None
    if fields.get("folder_inode") != inode:
        return None
    sound = _sound(Submission, {**fields, "placement": None, "state": None})
    placement = Placement(**_sound(Placement, fields.get("placement")))
    if placement.engine not in TITLES:
        return None
    return Submission(
        **{**sound, "folder": folder},
        placement=placement,
        state=ClusterState(**_sound(ClusterState, fields.get("state"))),
    )


def write_submission(submission: Submission) -> None:
    """Keep a job in its run folder. Raises OSError."""
    write_json(submission.folder / FILE, submission.to_json())


def forget(folder: Path) -> None:
    """Remove what a run folder says of a job, because the run starts elsewhere."""
    (folder / FILE).unlink(missing_ok=True)


@contextmanager
def being_sent(folder: Path) -> Iterator[None]:
    """Mark a run folder as one that this program sends to a cluster. The mark ends with it, however
    it ends."""
    with FileLock(folder / LOCK).acquire(timeout=SECONDS_TO_LOCK):
        yield


def is_being_sent(folder: Path) -> bool:
    """Return True while a living program sends a run folder to a cluster."""
    if not (folder / LOCK).exists():
        return False
    try:
        with FileLock(folder / LOCK).acquire(timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # of another account
        return False


def _sound(cls: Any, fields: object) -> dict[str, Any]:
    """Return the fields of a record that are there and of the declared type."""
    sound = {}
    values: Mapping[str, object] = fields if isinstance(fields, dict) else {}
    for name, declared in types_of(cls).items():
        if name in values and declared is not Path and values[name] is not None:
            with suppress(WrongType):
                sound[name] = value_as(declared, values[name])
    return sound
