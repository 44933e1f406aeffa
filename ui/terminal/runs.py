"""Actions of `python app.py runs`. Prints; decides nothing about a run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from core.after_training import bundle
from core.after_training.differences import compare_runs
from core.job import Problem, SpecError
from core.resolve import reference_of
from core.runs import Home, Run, edits, launch, listing, queue, read, results
from core.runs.engines import Placement
from core.runs.listing import list_runs
from core.runs.results import failure_advice
from core.runs.sentences import best_sentence, check_words, peak_memory, state_sentence
from core.wording import ago, duration, memory
from ui.terminal.follow import print_result, start_and_follow
from ui.terminal.placing import placement_of, split_flags
from ui.terminal.printing import out, print_json, say, table, wide_table
from ui.terminal.results import checkpoint_rows, continue_run, print_published, publish
from ui.terminal.usage import RUN_ACTIONS, call_of


@dataclass(frozen=True)
class RunCommand:
    """Words after the name of an action."""

    home: Home
    words: tuple[str, ...]
    as_json: bool
    epochs: str = "1"
    """Further epochs of a run that is continued."""
    placement: Placement | None = None
    """Where a run is resumed; None: where it was."""
    num_devices: str = ""
    """Number of devices with which it is resumed, "" for as many as before."""
    detach: bool = False

    @property
    def run(self) -> Run:
        """Run whose id is the first word. Raises RunNotFound."""
        return read(self.home, self.words[0])


def manage_runs(
    *,
    home: str | None = None,
    action: str = "list",
    id: str | None = None,
    more: Sequence[str] = (),
    epochs: str | None = None,
    num_devices: str = "",
    json: bool = False,
    detach: bool = False,
    **flags: str,
) -> int:
    """Perform one of RUN_ACTIONS and return the exit code. Raises TailorError."""
    words = (*([id] if id else []), *more)
    expected = RUN_ACTIONS[action].words
    fix = f"`python app.py runs {call_of(action)}`; `runs list` has the IDs"
    if len(words) < len(expected):
        raise SpecError(Problem(expected[len(words)], "is missing", fix))
    if len(words) > len(expected) and not RUN_ACTIONS[action].more:
        surplus = " ".join(words[len(expected) :])
        raise SpecError(Problem(action, f"does not accept {surplus!r}", fix))
    if epochs is not None and action != "continue":
        fix = "only `runs continue ID` trains more of them"
        raise SpecError(Problem("--epochs", f"{action} has no use for it", fix))
    where, _none = split_flags(flags)
    if (where or detach or num_devices) and action != "resume":
        problem = f"{action} does not start a run"
        field = "--num-devices" if num_devices else "--on"
        raise SpecError(Problem(field, problem, "leave it out; `runs resume ID` and train take it"))
    place = Home.find(home)
    to = placement_of(where)
    command = RunCommand(place, words, json, epochs or "1", to, num_devices, detach)
    return ACTIONS[action](command) or 0


def _list(command: RunCommand) -> None:
    queue.ask_clusters(command.home)
    unreadable = listing.unreadable(command.home)
    say(*(f"{run_id} cannot be read: {reason}" for run_id, reason in unreadable.items()))
    runs = listing.search(list_runs(command.home), " ".join(command.words))
    if command.as_json:
        print_json([run.to_json() for run in runs])
    elif runs:
        heads = (
            "run",
            "state",
            "step",
            "model",
            "method",
            "loss",
            "checks",
            "peak memory",
            "when",
            "",
        )
        out.print(wide_table(heads, [_row(run) for run in runs]))
    elif command.words:
        out.print("No run contains these words.")
    elif not unreadable:
        out.print("No runs yet. Train one: python app.py train --demo")


def _row(run: Run) -> tuple[object, ...]:
    """Return what `runs list` shows of a run: the same facts as the page's list."""
    loss = "" if run.loss is None else f"{run.loss:.4g}"
    model = reference_of(run.job.model).rsplit("/", 1)[-1]
    method = f"{run.job.stage} {run.job.method}"
    step = f"{run.step}/{run.max_steps}" if run.max_steps else ""
    cluster = run.submission.explanation if run.submission and run.is_active else ""
    note = " · ".join(filter(None, (run.about.title, run.error, cluster)))
    peak, when = peak_memory(run), ago(run.created)
    return run.id, run.state, step, model, method, loss, check_words(run), peak, when, note


def _show(command: RunCommand) -> None:
    queue.ask_clusters(command.home)
    run = command.run
    stalled = failure_advice.stall_warning(run)
    if command.as_json:
        more: dict[str, object] = {
            "notes": run.about.notes,
            "disk_bytes": run.disk_bytes(),
            "stalled": stalled,
            "result_step": run.result_step,
            "best": asdict(run.best) if run.best else None,
            "checkpoints": [each.to_json() for each in results.checkpoints_of(run)],
            "remedies": [advice.to_json() for advice in failure_advice.advice_for(run)],
            "job": run.job.model_dump(),
            "status": run.status.to_json(),
        }
        print_json(run.to_json() | more)
        return
    name = f"{run.name} ({run.id})" if run.about.title else run.id
    out.print(f"{name}: {state_sentence(run)}", style="bold")
    job = run.job
    out.print(f"{reference_of(job.model)} · {job.stage} · {job.method} · {run.folder}")
    tags = " ".join(f"#{tag}" for tag in run.about.tags)
    said = (stalled, run.about.notes, tags, best_sentence(run), check_words(run))
    for line in filter(None, said):
        out.print(line)
    if rows := tuple(checkpoint_rows(run)):
        out.print(table(("checkpoint", "evaluation", "size", ""), rows))
    print_result(run)


def _stop(command: RunCommand) -> None:
    run = command.run
    if not run.is_active:
        raise SpecError(Problem("ID", f"{run.id} is not running", "see its state with runs show"))
    launch.request_stop(run)
    if run.is_active and not command.as_json:
        is_waiting = run.state == "queued"
        message = "Stopping after this step, with a checkpoint."
        out.print("Taken out of the queue." if is_waiting else message)
    launch.wait(command.home, run.id, launch.SECONDS_TO_SAVE + 10)
    queue.advance(command.home)
    _show(command)


def _resume(command: RunCommand) -> int:
    start = queue.submit
    if command.num_devices:
        start = partial(results.resume_on, num_devices=command.num_devices)
    return start_and_follow(
        command.home, command.run, command.placement, detach=command.detach, start=start
    )


def _publish(command: RunCommand) -> None:
    run = publish(command.home, command.words[0], command.words[1])
    if command.as_json:
        print_json({"id": run.id, "result_step": run.result_step})
    else:
        print_published(run)


def _continue(command: RunCommand) -> int:
    return continue_run(command.home, command.words[0], command.epochs)


def _queue(command: RunCommand) -> None:
    waiting = queue.waiting(command.home)
    sent = queue.ask_clusters(command.home)
    if command.as_json:
        print_json([run.to_json() for run in (*waiting, *sent)])
    elif waiting or sent:
        rows: list[tuple[object, ...]] = []
        rows += [(place, run.id, run.job.device) for place, run in enumerate(waiting, start=1)]
        rows += [("", run.id, run.submission and run.submission.explanation) for run in sent]
        out.print(table(("", "run", "device"), rows))
    else:
        out.print("No run is waiting.")


def _move(command: RunCommand) -> None:
    directions: Mapping[str, queue.Direction] = {"up": "up", "down": "down"}
    run_id, direction = command.words
    if direction not in directions:
        raise SpecError(Problem("up|down", f"{direction!r} is neither", "say up or down"))
    queue.move(command.home, run_id, directions[direction])
    _queue(command)


def _delete(command: RunCommand) -> None:
    run_id = command.words[0]
    edits.delete(command.home, run_id)
    out.print(f"Deleted {run_id}. To undo: python app.py runs restore {run_id}")


def _restore(command: RunCommand) -> None:
    out.print(f"Restored {edits.restore(command.home, command.words[0]).id}.")


def _empty_trash(command: RunCommand) -> None:
    out.print(f"Freed {memory(edits.empty_trash(command.home))}.")


def _bundle(command: RunCommand) -> None:
    target = Path(command.words[1])
    if target.suffix != ".zip":
        raise SpecError(Problem("FILE.zip", f"{target} does not end in .zip", "name a zip file"))
    out.print(f"Wrote {bundle.write_bundle(command.run, target)}.")


def _compare(command: RunCommand) -> None:
    runs = [read(command.home, run_id) for run_id in command.words]
    differences = compare_runs(runs)
    if command.as_json:
        print_json([asdict(each) for each in differences])
        return
    rows = []
    for each in differences:
        rows.append((each.name, *(_shown(each.name, value) for value in each.values)))
    out.print(table(("", *(run.name for run in runs)), rows))


def _shown(name: str, value: object) -> str:
    if value is None:
        return "–"
    if not isinstance(value, float | int) or isinstance(value, bool):
        return str(value)
    if name == "peak_bytes":
        return memory(value)
    if name == "seconds":
        return duration(value)
    return f"{value:.5g}"


def _title(command: RunCommand) -> None:
    title = " ".join(command.words[1:])
    edits.annotate(command.home, command.words[0], title=title)
    _confirm(command, f"Title of {command.run.id}: {title or 'none'}")


def _note(command: RunCommand) -> None:
    notes = " ".join(command.words[1:])
    edits.annotate(command.home, command.words[0], notes=notes)
    _confirm(command, f"Notes of {command.run.id}: {notes or 'none'}")


def _tag(command: RunCommand) -> None:
    edits.annotate(command.home, command.words[0], tags=command.words[1:])
    tags = " ".join(f"#{tag}" for tag in command.run.about.tags)
    _confirm(command, f"Tags of {command.run.id}: {tags or 'none'}")


def _confirm(command: RunCommand, sentence: str) -> None:
    """Print what was changed; under --json the whole run."""
    if command.as_json:
        _show(command)
    else:
        out.print(sentence)


ACTIONS: Mapping[str, Callable[[RunCommand], int | None]] = {
    "list": _list,
    "show": _show,
    "stop": _stop,
    "resume": _resume,
    "publish": _publish,
    "continue": _continue,
    "queue": _queue,
    "move": _move,
    "delete": _delete,
    "restore": _restore,
    "empty-trash": _empty_trash,
    "title": _title,
    "note": _note,
    "tag": _tag,
    "compare": _compare,
    "bundle": _bundle,
}
"""Name of an action in RUN_ACTIONS -> function. It returns an exit code, None for success."""
