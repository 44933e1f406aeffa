"""Start a run in the foreground and follow it to its end. A detached process does the training."""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from core.job import Problem, RunNotFound
from core.runs import Home, Run, launch, queue
from core.runs.engines import Placement
from core.runs.results import failure_advice
from core.runs.sentences import (
    devices_sentence,
    memory_rows,
    state_sentence,
)
from core.training.contract.status import State
from ui.terminal.placing import instructions, require_cluster
from ui.terminal.printing import out, say, table
from ui.terminal.usage import flag_of

EXIT_CODES: Mapping[State, int] = {
    "finished": 0,
    "failed": 1,
    "interrupted": 1,
    "stopped": 130,
}
Start = Callable[..., Run]
"""Starts, queues or sends a run at a place."""
Rows = tuple[dict[str, Any], ...]
"""Rows of metrics.jsonl."""
SECONDS_BETWEEN_UPDATES = 0.2
SECONDS_BEFORE_WORDS = 5.0
"""Time that a cluster may take to answer before the user is told that it is asked."""
SHOWN_METRICS = ("loss", "eval_loss", "eval_perplexity", "learning_rate")


def start_and_follow(
    home: Home,
    run: Run,
    placement: Placement | None = None,
    *,
    detach: bool = False,
    start: Start = queue.submit,
) -> int:
    """Start a run when it is its turn and show it until it ends. Return the exit code.

    Ctrl-C takes it out of the queue, or stops it with a checkpoint. A second Ctrl-C leaves it to
    end by itself. `detach` returns once a cluster has it. `start` is what starts or sends it.
    """
    if detach:
        require_cluster(run, placement)
    with interrupts() as pressed:
        before, earlier_rows = run.job.num_devices, run.metrics()
        with _said_if_slow(placement or run.placement):
            run = start(home, run, placement=placement)
        _say_where(run, before)
        if detach:
            return 0
        run = _follow(home, run, pressed, earlier_rows)
    queue.advance(home)  # start the next run, even if no page is open
    out.print(state_sentence(run), style="bold")
    print_result(run)
    return EXIT_CODES[run.state]


def _follow(home: Home, run: Run, pressed: list[int], rows: Rows) -> Run:
    """Show a run until it ends, and return it. `pressed` is not empty once Ctrl-C was pressed;
    `rows` are the metrics of earlier attempts."""
    said = run.submission.sentence if run.submission else ""
    with _progress_bar() as progress:
        bar = progress.add_task("starting", total=None, note="")
        while run.is_active:
            if pressed:
                pressed.clear()
                _stop(run)
            queue.advance(home)
            run = _wait(home, run)
            said = _print_new_words(run, said)
            if not out.is_terminal:  # no bar there
                rows = _print_new_rows(run, rows)
            _update(progress, bar, run)
    return run


@contextmanager
def _said_if_slow(placement: Placement) -> Iterator[None]:
    """Say on stderr that a cluster takes long, if this block does."""
    if placement.is_here:
        yield
        return
    words = f"Still sending it to {placement.title}, which has not taken it yet."
    timer = threading.Timer(SECONDS_BEFORE_WORDS, say, (words,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _say_where(run: Run, devices_before: int) -> None:
    """Print how a run shares its rows if that is new, what it waits for, and what the user has to
    type."""
    out.print(f"{run.id}\n{run.folder}", style="dim")
    if run.job.num_devices != devices_before:
        out.print(devices_sentence(run))
    if run.submission:
        out.print(run.submission.sentence)
        if line := instructions(run):
            out.print(line)
    elif run.state == "queued":
        out.print(f"{queue.why_it_waits(run)} Ctrl-C cancels.")


def _wait(home: Home, run: Run) -> Run:
    """Return a run some moments later. Raises RunNotFound if its folder was removed."""
    try:
        return launch.wait(home, run.id, SECONDS_BETWEEN_UPDATES)
    except RunNotFound:
        problem = f"{run.folder} was removed, so its training has ended"
        raise RunNotFound(Problem("run", problem, "start a new run")) from None


def print_result(run: Run) -> None:
    """Print measured memory, answers, and what to do next."""
    if rows := memory_rows(run):
        out.print(table(("peak memory", "predicted", "measured", ""), rows))
    for sample in run.samples():
        out.print(f"step {sample.step}: {sample.prompt}  →  {sample.answer}")
    if run.state == "finished":
        step = f" (step {run.result_step:,})" if run.result_step else ""
        out.print(f"Result: {run.folder / 'output'}{step}")
    elif not run.is_active and run.has_checkpoint:
        out.print(f"To continue from its checkpoint: python app.py runs resume {run.id}")
    for advice in failure_advice.advice_for(run):
        out.print(f"→ {advice.title}{_flags(advice.change)}: {advice.why}")
    if run.state == "failed" and (run.folder / "log.txt").exists():
        out.print(f"Log: {run.folder / 'log.txt'}")


def _update(progress: Progress, bar: TaskID, run: Run) -> None:
    progress.update(
        bar,
        description=run.status.phase if run.state == "running" else run.state,
        completed=run.step,
        total=run.max_steps or None,
        note="",
    )
    if run.loss is not None:
        progress.update(bar, note=f"loss {run.loss:.4f}")


def _flags(change: Mapping[str, object]) -> str:
    flags = [f"{flag_of(name)} {value}" for name, value in change.items()]
    return f" ({' '.join(flags)})" if flags else ""


def _stop(run: Run) -> None:
    if run.state != "queued":
        out.print("Stopping after this step, with a checkpoint. Ctrl-C again stops watching it.")
    launch.request_stop(run)


def _print_new_words(run: Run, said: str) -> str:
    """Print what a cluster says of a run, if it is new. Return it."""
    words = run.submission.sentence if run.submission else ""
    if words != said:
        out.print(words)
    return words


def _print_new_rows(run: Run, printed: Rows) -> Rows:
    """Print the metrics that are new, and return all."""
    rows = run.metrics()
    total = f"/{run.max_steps}" if run.max_steps else ""
    for row in new_rows(rows, printed):
        names = [name for name in SHOWN_METRICS if name in row]
        values = "  ".join(f"{name} {row[name]:.4g}" for name in names)
        out.print(f"step {row.get('step')}{total}  {values}")
    return rows


def new_rows(rows: Rows, printed: Rows) -> Rows:
    """Return the rows that were not printed. A run that resumes drops those after its checkpoint,
    so that new ones may take their places."""
    num_same = 0
    for row, before in zip(rows, printed, strict=False):
        if _moment(row) != _moment(before):
            break
        num_same += 1
    return rows[num_same:]


def _moment(row: Mapping[str, Any]) -> tuple[object, object]:
    return row.get("step"), row.get("time")


def _progress_bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=out,
        disable=not out.is_terminal,
    )


@contextmanager
def interrupts() -> Iterator[list[int]]:
    """Collect the first Ctrl-C in a list, to act on it when no lock is held.

    The second Ctrl-C interrupts.
    """
    received: list[int] = []

    def receive(number: int, _frame: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        received.append(number)

    before = signal.signal(signal.SIGINT, receive)
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, before)
