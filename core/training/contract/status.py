"""Status of a run: its states, and the fields of status.json, which the training program writes and
everybody else reads."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from .process_id import ProcessId
from .typed_json import WrongType, types_of, value_as

State = Literal[
    "queued", "starting", "running", "stopping", "finished", "stopped", "failed", "interrupted"
]
Phase = Literal["import", "data", "load", "train", "eval", "save"]
"""Step of the training program that runs now, or ran last."""

ENDED: frozenset[State] = frozenset({"finished", "stopped", "failed", "interrupted"})
ACTIVE: frozenset[State] = frozenset({"queued", "starting", "running", "stopping"})
TRANSITIONS: Mapping[State, frozenset[State]] = MappingProxyType(
    {
        "queued": frozenset({"starting", "stopped", "failed"}),
        "starting": frozenset({"queued", "running", "stopping", *ENDED}),
        "running": frozenset({"stopping", *ENDED}),
        "stopping": ENDED,
        "finished": frozenset(),
        "stopped": frozenset({"queued", "starting"}),
        "failed": frozenset({"queued", "starting"}),
        "interrupted": frozenset({"queued", "starting"}),
    }
)
"""State -> states that may follow. A new run is `starting`; until its program starts, it may still
be queued."""


@dataclass(frozen=True)
class Progress:
    """Progress of one long operation, such as a download."""

    what: str
    done: float
    total: float | None
    unit: str
    """`B` for bytes; otherwise a plural noun."""


@dataclass(frozen=True)
class Status:
    """Fields of status.json. Sizes in bytes, moments in Unix seconds.

    A default means that the program has not written the field yet.
    """

    pid: int = 0
    pid_start_time: float = 0.0
    boot_id: str = ""
    folder_inode: int | None = None
    """Number of the run folder on its disk: a copy of the folder has another."""
    started: float = 0.0
    """Start of this process; a resumed run starts again."""
    updated: float = 0.0
    seconds: float = 0.0
    """Training time in seconds over all attempts (monotonic clock)."""
    state: State = "starting"
    phase: Phase = "import"
    """Current phase, or the last one of a run that has ended."""
    progress: Progress | None = None
    """Progress of a download, of tokenizing, of loading or of an evaluation."""
    error: str | None = None
    """One sentence, for a failed run."""
    cause: str | None = None
    """Stable name of that failure, as in failures.CAUSES."""
    needed_bytes: int | None = None
    free_bytes: int | None = None
    warning: str | None = None
    """One sentence about a problem that does not end the run."""
    notes: tuple[str, ...] = ()
    """Sentences about everything that was done differently from the job, and why."""
    result: str | None = None
    """Folder of the result, for a finished run."""
    result_step: int | None = None
    """Step whose weights the result holds."""
    best_step: int | None = None
    """Step of the best evaluation so far."""
    best_value: float | None = None
    best_metric: str | None = None
    """What was best there, such as eval_loss."""
    ended_early: str | None = None
    """One sentence, for a run that ended before its last step because it no longer improved."""
    step: int = 0
    max_steps: int = 0
    epoch: float = 0.0
    num_train_epochs: float = 0.0
    last_step_time: float | None = None
    """End of the last optimizer step. With seconds_per_step it tells a slow run from one that
    hangs."""
    seconds_per_step: float | None = None
    checkpoint_step: int | None = None
    """Step of the newest good checkpoint."""
    skipped_checkpoints: tuple[str, ...] = ()
    """Damaged checkpoints, each with its damage."""
    resumed_at: tuple[int, ...] = ()
    """Steps from which the run was resumed, in all attempts."""
    per_device_train_batch_size: int | None = None
    """Current value: smaller than in the job after out-of-memory recovery."""
    gradient_accumulation_steps: int | None = None
    num_train_rows: int | None = None
    num_eval_rows: int | None = None
    num_parameters: int | None = None
    num_trainable_parameters: int | None = None
    device: str | None = None
    device_capacity_bytes: int | None = None
    baseline_bytes: int | None = None
    """Memory of the process before the model was loaded; 0 on a GPU."""
    phase_peak_bytes: Mapping[str, int] = field(default_factory=dict)
    """Peak of each memory phase above the baseline: load, forward, backward, optimizer_step, eval,
    save."""
    peak_allocated_bytes: int | None = None
    """Highest allocated memory of the whole training (GPU only)."""
    peak_reserved_bytes: int | None = None
    """Highest reserved memory of the whole training (GPU only)."""
    peak_device_bytes: int | None = None
    """Most memory of the card that this process was seen to take, its CUDA context included."""
    peak_process_bytes: int | None = None
    """Most memory that the process has taken (without a GPU only)."""
    versions: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, fields: Mapping[str, object]) -> "Status":
        """Return the status in a file of any version, torn or damaged ones included.

        Unknown fields and values of a wrong type are left out: one damaged file must not hide the
        list of runs.
        """
        sound: dict[str, Any] = {}
        for name, declared in types_of(cls).items():
            value = fields.get(name)
            if value is not None:
                with suppress(WrongType):
                    sound[name] = value_as(declared, value)
        return cls(**sound)

    def to_json(self) -> dict[str, object]:
        """Return all fields as status.json holds them."""
        return asdict(self)

    @property
    def process(self) -> ProcessId | None:
        """Process that wrote this status; None if no program has."""
        return ProcessId.from_json(vars(self)) if self.boot_id else None
