"""Print the checkpoints of a run, make one its result, and continue a run. Decides nothing."""

from collections.abc import Iterator

from core.job import Problem, SpecError
from core.runs import Home, Run, read, results
from core.runs.sentences import evaluation_words
from core.wording import memory
from ui.terminal.follow import start_and_follow
from ui.terminal.printing import out
from ui.terminal.usage import is_whole


def publish(home: Home, run_id: str, step: str) -> Run:
    """Make a checkpoint the result of a run, or undo that. Raises TailorError, OSError."""
    if step == results.UNDO:
        return results.publish_original(home, run_id)
    if not is_whole(step):
        fix = f"give the step of a checkpoint, or {results.UNDO} to undo"
        raise SpecError(Problem("STEP", f"{step!r} is not a step", fix))
    return results.publish(home, run_id, int(step))


def print_published(run: Run) -> None:
    """Print which step the result of a run holds now, and how to undo it."""
    step = "an unknown step" if run.result_step is None else f"step {run.result_step:,}"
    out.print(f"The result is that of {step}: {run.folder / 'output'}")
    if results.has_original(run):
        out.print(f"To undo: python app.py runs publish {run.id} {results.UNDO}")


def continue_run(home: Home, run_id: str, epochs: str) -> int:
    """Train a finished run for more epochs, as a new run. Return the exit code.

    Raises TailorError, OSError.
    """
    try:
        number = float(epochs)
    except ValueError:
        problem = Problem("--epochs", f"{epochs!r} is not a number", "give one, such as 2")
        raise SpecError(problem) from None
    plan = results.plan_continuation(read(home, run_id), number)
    run = results.create_continuation(home, plan)
    out.print(plan.sentence)
    return start_and_follow(home, run)


def checkpoint_rows(run: Run) -> Iterator[tuple[str, str, str, str]]:
    """Yield (step, evaluation, size, marks) of each checkpoint, the oldest first."""
    for each in results.checkpoints_of(run):
        marks = {
            "best": each.is_best,
            "the result": each.is_result,
            "incomplete": not each.is_complete,
        }
        said = ", ".join(mark for mark, is_set in marks.items() if is_set)
        value = "" if each.value is None else evaluation_words(each.metric, each.value)
        yield f"{each.step:,}", value, memory(each.num_bytes), said
