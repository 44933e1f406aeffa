"""Command `check-model`: what a run has learnt and lost. Prints; judges no answer."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from rich.progress import BarColumn, Progress, TextColumn

from core.after_training.export import Export
from core.after_training.export_checks import check_export as ask_export
from core.after_training.export_checks import find_exported, names_export
from core.after_training.export_checks.sentences import compared_words
from core.dataset import counted
from core.job import ChildError, Problem, SpecError
from core.runs import Home, Run
from core.runs.checks import SuiteResult, lm_tasks, read_thresholds, sentences
from core.runs.results import checking, lm_evaluation
from core.runs.results.checking import CheckReport
from core.training.contract.checks.suite import Suite
from ui.terminal.printing import out, print_json, say, table

FAILED = 1
MAX_SHOWN = 20
"""Lost and gained tests that are printed; --json has all."""
SHOWN_CHARACTERS = 70
BEFORE_AFTER = ("before", "after")
"""Words for the models before and after a training."""


def check_model(
    *,
    run: str,
    home: str | None = None,
    suite: Sequence[str] = (),
    at_least: str = "",
    lm_eval: str = "",
    write_tasks: str = "",
    json: bool = False,
) -> int:
    """Check a run, a checkpoint or an export of it. Return 1 if a threshold is missed.

    Raises TailorError.
    """
    _require_used(suite, at_least, lm_eval, write_tasks)
    if names_export(run):
        _require_unused("--lm-eval", lm_eval)
        _require_unused("--write-tasks", write_tasks)
        checked, export = find_exported(Home.find(home), run)
        return check_export(checked, export, suite, at_least, as_json=json)
    checked, checkpoint = checking.find_checkpoint(Home.find(home), run)
    if lm_eval:
        return _ask_harness(checked, checkpoint, lm_eval, as_json=json)
    suites = checking.find_suites(checked, suite)
    if write_tasks:
        return _write_tasks(suites, Path(write_tasks))
    thresholds = read_thresholds(at_least, [each.name for each in suites])
    try:
        with _progress("checking") as show:
            report = checking.check(checked, suites, checkpoint=checkpoint, on_progress=show)
    except ChildError as error:
        say(checking.died_sentence(error))
        return FAILED
    if json:
        print_json(report.to_json())
    else:
        _print(report)
    return _judged(report.suites, thresholds)


def check_export(
    run: Run,
    export: Export,
    suite: Sequence[str] = (),
    at_least: str = "",
    *,
    as_json: bool = False,
    is_silent: bool = False,
) -> int:
    """Check an export and print the results. Return 1 if a threshold is missed, or if it gave no
    answers. Raises TailorError."""
    suites = checking.find_suites(run, suite)
    thresholds = read_thresholds(at_least, [each.name for each in suites])
    try:
        with _progress(f"checking {export.name}") as show:
            report = ask_export(run, export, suites, on_progress=show)
    except ChildError as error:
        say(checking.died_sentence(error))
        return FAILED
    if as_json:
        print_json(report.to_json())
    elif not is_silent:
        for result in report.suites:
            _print_suite(result, compared_words(export.manifest))
    return _judged(report.suites, thresholds)


def _judged(results: Sequence[SuiteResult], thresholds: Mapping[str, int]) -> int:
    """Say which thresholds are missed, and return the exit code."""
    missed = sentences.missed_thresholds({each.name: each for each in results}, thresholds)
    say(*missed)
    return FAILED if missed else 0


def _require_unused(flag: str, value: str) -> None:
    """Raise SpecError for a flag that an export has no use for."""
    if value:
        raise SpecError(Problem(flag, "has no use for an export", "leave out @ and what follows"))


def _require_used(suite: Sequence[str], at_least: str, lm_eval: str, write_tasks: str) -> None:
    """Raise SpecError for a flag that another one would leave without use."""
    asks, writes = ("--lm-eval", bool(lm_eval)), ("--write-tasks", bool(write_tasks))
    without_use = (
        (*asks, "--write-tasks", bool(write_tasks)),
        (*asks, "--suite", bool(suite)),
        (*asks, "--at-least", bool(at_least)),
        (*writes, "--at-least", bool(at_least)),
    )
    problems = []
    for flag, is_given, other, is_other_given in without_use:
        if is_given and is_other_given:
            problems.append(Problem(other, f"has no use beside {flag}", "leave one of them out"))
    if problems:
        raise SpecError(*problems)


def _write_tasks(suites: Sequence[Suite], folder: Path) -> int:
    """Write suites for lm-evaluation-harness, and say how to ask them."""
    try:
        tasks, left_out = lm_tasks.named_tasks(suites, folder)
    except OSError as error:
        problem = f"{folder} cannot be written: {error.strerror}"
        raise SpecError(Problem("--write-tasks", problem, "name another folder")) from None
    names = ",".join(name for each in tasks.values() for name in each)
    command = f"lm_eval --model hf --model_args pretrained=MODEL --tasks {names}"
    out.print(f"Wrote {folder}. Ask them with:", soft_wrap=True)
    out.print(f"{command} --include_path {folder} --apply_chat_template", soft_wrap=True)
    _say_left_out(left_out)
    return 0


def _say_left_out(left_out: int) -> None:
    if left_out:
        say(f"{counted(left_out, 'test')} with tools or several messages left out.")


def _ask_harness(run: Run, checkpoint: int | None, tasks: str, *, as_json: bool) -> int:
    """Print the scores of lm-evaluation-harness before and after a training."""
    lm_evaluation.require_installed()
    names = tuple(name.strip() for name in tasks.split(",") if name.strip())
    scores, left_out = lm_evaluation.evaluate(run, checkpoint, names)
    _say_left_out(left_out)
    if as_json:
        print_json({"run": run.id, "lm_eval": [asdict(each) for each in scores]})
        return 0
    rows = []
    for each in scores:
        before = "" if each.before is None else f"{each.before:.4g}"
        rows.append((each.task, each.metric, before, f"{each.after:.4g}"))
    out.print(table(("task", "metric", "before", "after"), rows))
    return 0


@contextmanager
def _progress(title: str) -> Iterator[Callable[[float], None]]:
    """Show a bar in a terminal; yield what moves it to a share."""
    columns = (TextColumn("{task.description}"), BarColumn())
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as bar:
        task = bar.add_task(title, total=1.0)
        yield lambda share: bar.update(task, completed=share)


def _print(report: CheckReport) -> None:
    for result in report.suites:
        _print_suite(result, BEFORE_AFTER)
    for sentence in sentences.perplexity_sentences(report.perplexity):
        out.print(sentence)
    if report.cached:
        names = ", ".join(report.cached)
        out.print(f"Answers before the training are those of an earlier check: {names}.")


def _print_suite(result: SuiteResult, words: tuple[str, str]) -> None:
    """Print the numbers of a suite, with words for the two models, and the tests that changed."""
    out.print(sentences.count_sentence(result, *words), style="bold")
    out.print(sentences.change_sentence(result))
    if result.categories and result.lost:
        rows = []
        for name, count in result.categories.items():
            if count.before != count.after:
                rows.append((name, count.before, count.after, count.total))
        out.print(table(("category", *words, "of"), rows))
    _print_changed("lost", result, words)
    _print_changed("gained", result, words)


def _print_changed(title: str, result: SuiteResult, words: tuple[str, str]) -> None:
    changed = result.lost if title == "lost" else result.gained
    if not changed:
        return
    rows = []
    for each in changed[:MAX_SHOWN]:
        rows.append((_short(each.prompt), _short(each.before), _short(each.after)))
    out.print(table((title, *words), rows))
    if len(changed) > MAX_SHOWN:
        out.print(f"{len(changed) - MAX_SHOWN:,} more {title}; --json lists all.")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_CHARACTERS else f"{line[:SHOWN_CHARACTERS]}…"
