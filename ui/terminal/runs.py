"""The command line's `runs`, and how a run is followed in the foreground. Prints; decides nothing about a run."""

import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from core import runs
from core.job import Problem, SpecError
from core.runs import Home, Run, bundle, comparison, edits, failure_advice, launch, listing, queue
from core.training.contract.states import State
from core.wording import memory, memory_rows, state_sentence
from ui.terminal.printing import bad_input, out, print_json, table

EXIT_CODES: Mapping[State, int] = {
    "finished": 0,
    "failed": 1,
    "interrupted": 1,
    "stopped": 130,
}


@dataclass(frozen=True)
class Asked:
    """What stands behind `app.py runs ACTION`."""

    home: Home
    words: tuple[str, ...]
    as_json: bool

    @property
    def run(self) -> Run:
        """The run of the first word. Raises RunNotFound."""
        return runs.read(self.home, self.words[0])


@dataclass(frozen=True)
class Action:
    """One thing that `app.py runs` does. Its words are what must follow its name."""

    do: Callable[[Asked], int]
    words: tuple[str, ...] = ()
    takes_more: bool = False


def manage_runs(
    home: str | None = None,
    action: str = "list",
    id: str | None = None,
    more: Sequence[str] = (),
    json: bool = False,
) -> int:
    """Does one of RUN_ACTIONS. Returns the exit code."""
    with bad_input() as failure:
        asked = Asked(Home.find(home), (*([] if id is None else [id]), *more), json)
        wanted = RUN_ACTIONS[action]
        usage = f"`python app.py runs {' '.join((action, *wanted.words))}`; `runs list` has the IDs"
        if missing := wanted.words[len(asked.words) :]:
            raise SpecError(Problem(missing[0], "is missing", usage))
        if not wanted.takes_more and (surplus := asked.words[len(wanted.words) :]):
            raise SpecError(
                Problem(action, f"does not know what to do with {' '.join(surplus)}", usage)
            )
        return wanted.do(asked)
    return failure.code


def train_and_follow(home: Home, run: Run) -> int:
    """Starts a run, once it is its turn, and shows it until it ends. Returns the exit code.

    Ctrl-C takes it out of the queue, or stops it with a checkpoint; a second one leaves it to end by itself.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=out) as progress, _interrupts() as interrupts:
        run = queue.submit(home, run)
        out.print(f"{run.id}\n{run.folder}", style="dim")
        if run.state == "queued":
            out.print(
                "Waiting: another run has the device. Ctrl-C takes this one out of the queue."
            )
        bar = progress.add_task("starting", total=None, note="")
        printed = 0
        while run.is_active:
            if interrupts:
                interrupts.clear()
                if run.state != "queued":
                    out.print(
                        "Stopping after this step, with a checkpoint. Ctrl-C again to leave it alone."
                    )
                launch.request_stop(run)
            queue.advance(home)
            run = launch.wait(home, run.id, 0.2)
            printed = _report_rows(run, printed)
            note = f"loss {run.loss:.4f}" if run.loss is not None else ""
            word = run.status.phase if run.state == "running" else run.state
            progress.update(
                bar,
                description=str(word),
                completed=run.step,
                total=run.max_steps or None,
                note=note,
            )
    queue.advance(home)  # its device is free: whoever waits for it need not wait for the page
    out.print(state_sentence(run), style="bold")
    _print_result(run)
    return EXIT_CODES[run.state]


def _list(asked: Asked) -> int:
    """All runs, or those in which every further word occurs."""
    found = listing.search(runs.list_runs(asked.home), " ".join(asked.words))
    unreadable = listing.unreadable(asked.home)
    for run_id, why in unreadable.items():
        print(f"{run_id} cannot be read: {why}", file=sys.stderr)
    if asked.as_json:
        print_json([run.to_json() for run in found])
    elif found:
        rows = [
            (run.id, run.state, f"{run.step}/{run.max_steps}", run.about.title or run.error)
            for run in found
        ]
        out.print(table(("run", "state", "step", ""), rows))
    elif asked.words or not unreadable:
        out.print(
            "No run has these words." if asked.words else "No runs yet: `make demo` makes one."
        )
    return 0


def _show(asked: Asked) -> int:
    run = asked.run
    if asked.as_json:
        about: dict[str, object] = {
            "notes": run.about.notes,
            "disk_bytes": run.disk_bytes(),
            "stalled": failure_advice.stall_warning(run),
        }
        about["remedies"] = [each.to_json() for each in failure_advice.advice_for(run)]
        print_json(
            run.to_json() | about | {"job": run.job.model_dump(), "status": run.status.to_json()}
        )
    else:
        out.print(f"{run.name}: {state_sentence(run)}", style="bold")
        for line in (
            failure_advice.stall_warning(run),
            run.about.notes,
            " ".join(f"#{tag}" for tag in run.about.tags),
        ):
            if line:
                out.print(line)
        _print_result(run)
    return 0


def _queue(asked: Asked) -> int:
    """Who waits, the next first."""
    found = queue.waiting(asked.home)
    if asked.as_json:
        print_json([run.to_json() for run in found])
    elif found:
        out.print(
            table(
                ("", "run", "device"),
                [(n, run.id, run.job.device) for n, run in enumerate(found, 1)],
            )
        )
    else:
        out.print("Nobody waits.")
    return 0


def _move(asked: Asked) -> int:
    directions: Mapping[str, queue.Direction] = {"up": "up", "down": "down"}
    if asked.words[1] not in directions:
        raise SpecError(Problem("up|down", f"{asked.words[1]!r} is neither", "say up or down"))
    queue.move(asked.home, asked.words[0], directions[asked.words[1]])
    return _queue(Asked(asked.home, (), asked.as_json))


def _stop(asked: Asked) -> int:
    run = asked.run
    launch.request_stop(run)
    if run.is_active and not asked.as_json:
        waits = run.state == "queued"
        out.print(
            "Taken out of the queue." if waits else "Stopping after this step, with a checkpoint."
        )
    launch.wait(asked.home, run.id, launch.SECONDS_TO_SAVE + 10)
    queue.advance(asked.home)
    return _show(asked)


def _resume(asked: Asked) -> int:
    return train_and_follow(asked.home, asked.run)


def _delete(asked: Asked) -> int:
    edits.delete(asked.home, asked.words[0])
    out.print(
        f"Deleted {asked.words[0]}. `python app.py runs restore {asked.words[0]}` brings it back."
    )
    return 0


def _restore(asked: Asked) -> int:
    out.print(f"{edits.restore(asked.home, asked.words[0]).id} is back.")
    return 0


def _empty_trash(asked: Asked) -> int:
    out.print(f"{memory(edits.empty_trash(asked.home))} freed.")
    return 0


def _bundle(asked: Asked) -> int:
    target = Path(asked.words[1])
    if target.suffix != ".zip":
        raise SpecError(Problem("FILE.zip", f"{target} does not end in .zip", "name a zip file"))
    out.print(f"Wrote {bundle.write_bundle(asked.run, target)}.")
    return 0


def _compare(asked: Asked) -> int:
    chosen = [runs.read(asked.home, run_id) for run_id in asked.words]
    found = comparison.compare(chosen)
    if asked.as_json:
        print_json([asdict(each) for each in found])
    else:
        names = tuple(run.name for run in chosen)
        rows = [
            (each.name, *("–" if value is None else value for value in each.values))
            for each in found
        ]
        out.print(table(("", *names), rows))
    return 0


def _title(asked: Asked) -> int:
    edits.annotate(asked.home, asked.words[0], title=" ".join(asked.words[1:]))
    return _show(asked)


def _note(asked: Asked) -> int:
    edits.annotate(asked.home, asked.words[0], notes=" ".join(asked.words[1:]))
    return _show(asked)


def _tag(asked: Asked) -> int:
    edits.annotate(asked.home, asked.words[0], tags=asked.words[1:])
    return _show(asked)


RUN_ACTIONS: Mapping[str, Action] = {
    "list": Action(_list, takes_more=True),
    "show": Action(_show, ("ID",)),
    "stop": Action(_stop, ("ID",)),
    "resume": Action(_resume, ("ID",)),
    "queue": Action(_queue),
    "move": Action(_move, ("ID", "up|down")),
    "delete": Action(_delete, ("ID",)),
    "restore": Action(_restore, ("ID",)),
    "empty-trash": Action(_empty_trash),
    "title": Action(_title, ("ID",), takes_more=True),
    "note": Action(_note, ("ID",), takes_more=True),
    "tag": Action(_tag, ("ID",), takes_more=True),
    "compare": Action(_compare, ("ID", "ID"), takes_more=True),
    "bundle": Action(_bundle, ("ID", "FILE.zip")),
}


def _report_rows(run: Run, printed: int) -> int:
    """Without a terminal there is no bar to watch, so each logged row is a line."""
    if out.is_terminal:
        return printed
    rows = run.metrics()
    for row in rows[printed:]:
        words = (
            f"{name} {row[name]:.4g}"
            for name in ("loss", "eval_loss", "learning_rate")
            if name in row
        )
        out.print(f"step {row.get('step')}/{run.max_steps}  {'  '.join(words)}")
    return len(rows)


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """The first Ctrl-C is noted here, for a moment when no lock is held; the second one interrupts."""
    noted: list[int] = []

    def note(number: int, _frame: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        noted.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)


def _print_result(run: Run) -> None:
    if rows := memory_rows(run):
        out.print(table(("phase", "predicted GiB", "measured GiB", ""), rows))
    for sample in run.samples():
        out.print(f"step {sample['step']}: {sample['prompt']}  →  {sample['answer']}")
    if run.state == "finished":
        out.print(f"Result: {run.folder / 'output'}")
    elif run.state in ("stopped", "interrupted", "failed") and run.has_checkpoint:
        out.print(f"Go on from its checkpoint with: python app.py runs resume {run.id}")
    for each in failure_advice.advice_for(run):
        change = " ".join(
            f"--{name.replace('_', '-')} {value}" for name, value in each.change.items()
        )
        out.print(f"→ {each.title}{f' ({change})' if change else ''}: {each.why}")
    if run.state == "failed":
        out.print(f"Log: {run.folder / 'log.txt'}")
