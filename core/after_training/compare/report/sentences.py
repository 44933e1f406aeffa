"""Sentences of a report: what the numbers say, and what they do not. Computed, never assumed."""

from collections import Counter
from collections.abc import Iterator, Mapping

from core.after_training.compare.report.chance import Contrast, contrasts, difference_of_shares
from core.after_training.compare.report.summary import Group, Summary
from core.after_training.differences import compare_runs
from core.resolve import reference_of
from core.runs import Run
from core.runs.checks.statistics import wilson_interval
from core.runs.sentences import loss_note
from core.training.contract.stages import STAGES
from core.wording import memory, rough_duration

FEW_CHECKS = 100
"""With fewer questions an interval is at least 10 points wide on each side of one half."""
FEW_ROWS = 100
CHANGES_EVALUATION = frozenset(
    {"model", "stage", "dataset", "eval_dataset", "eval_fraction", "max_length", "mix"}
)
"""Job fields that decide what the evaluation loss is an average of."""
JUDGES = {"eval_loss": "evaluation loss", "loss": "training loss"}
LARGE_ERROR = 0.05
"""Share of the memory above which a wrong prediction is named."""


def findings(summary: Summary) -> list[str]:
    """Return what the runs say, the outcome first."""
    return [
        _outcome(summary),
        *_losses(summary),
        *_loss_notes(summary),
        *_memory(summary),
        *_speed(summary),
        *_checks(summary),
    ]


def cautions(summary: Summary) -> list[str]:
    """Return what must not be concluded."""
    return list(_cautions(summary))


def _outcome(summary: Summary) -> str:
    states = Counter(
        "pruned" if each.trial.pruned and each.state == "stopped" else each.state
        for each in summary.runs
    )
    parts = [f"{number} {state}" for state, number in states.most_common()]
    noun = "run" if len(summary.runs) == 1 else "runs"
    return f"{len(summary.runs)} {noun}: {', '.join(parts)}. {summary.note}".strip()


def _losses(summary: Summary) -> Iterator[str]:
    name = summary.judged_by
    title, values = JUDGES[name], summary.values(name)
    if len(values) < 2:
        return
    best = summary.best
    assert best is not None
    spread = best.spread(name)
    assert spread is not None
    if max(len(by_seed) for by_seed in values.values()) < 2:
        yield (
            f"Lowest {title}: {best.label} with {spread.mean:.3f}. With one seed, nothing says "
            "whether the others differ from it by more than chance."
        )
        return
    found = contrasts(values)
    if not found:
        yield (
            f"Lowest {title} with the seeds that all have finished: {best.label}. They are too few "
            "to tell a difference from chance."
        )
        return
    yield from (_contrast(each, title) for each in found)


def _loss_notes(summary: Summary) -> Iterator[str]:
    stages = dict.fromkeys(each.run.job.stage for each in summary.runs if each.run)
    yield from filter(None, map(loss_note, stages))


def _contrast(each: Contrast, title: str) -> str:
    numbers = f"{each.difference:.3f} ± {each.margin:.3f}"
    seeds = f"{each.num_seeds} seeds"
    if each.is_beyond_chance:
        return (
            f"{each.best} has a lower {title} than {each.other}: by {numbers} "
            f"(95 %, {seeds}), more than chance explains."
        )
    return (
        f"No difference beyond chance between {each.best} and {each.other}: "
        f"{title} {numbers} higher (95 %, {seeds})."
    )


def _memory(summary: Summary) -> Iterator[str]:
    peaks = {group.label: group.spread("peak_bytes") for group in summary.compared}
    known = {label: spread.mean for label, spread in peaks.items() if spread}
    if len(known) > 1:
        least, most = min(known, key=lambda key: known[key]), max(known, key=lambda key: known[key])
        sizes = memory(known[least]), memory(known[most])
        if sizes[0] == sizes[1]:
            yield f"Peak memory: about {sizes[0]} in every way."
        else:
            said = f"Peak memory: {least} took least, {sizes[0]}; {most} most, {sizes[1]}"
            yield f"{said}{_chance(summary.values('peak_bytes'), least, most)}."
    wrong = {}
    for group in summary.compared:
        for name, (predicted, measured) in group.shown.phases.items():
            wrong[group.label, name] = predicted / measured - 1
    if wrong:
        (label, name), error = max(wrong.items(), key=lambda item: abs(item[1]))
        yield (
            f"The prediction of the memory is at most {abs(error):.0%} off: {error:+.1%} for "
            f"{label}, {name.replace('_', ' ')}."
        )


def _chance(values: Mapping[str, Mapping[int, float]], lowest: str, highest: str) -> str:
    """Return what is added where several seeds show no difference between two groups."""
    for each in contrasts({label: values[label] for label in (lowest, highest)}):
        if not each.is_beyond_chance:
            return "; no difference beyond chance"
    return ""


def _speed(summary: Summary) -> Iterator[str]:
    rates = {group.label: group.spread("tokens_per_second") for group in summary.compared}
    known = {label: spread.mean for label, spread in rates.items() if spread}
    if len(known) > 1:
        fastest = max(known, key=lambda key: known[key])
        slowest = min(known, key=lambda key: known[key])
        said = (
            f"{fastest} was the fastest with {known[fastest]:,.0f} tokens/s, {slowest} the slowest "
            f"with {known[slowest]:,.0f}"
        )
        yield f"{said}{_chance(summary.values('tokens_per_second'), slowest, fastest)}."
    seconds = sum(each.seconds or 0 for each in summary.runs)
    dollars = sum(each.usd or 0 for each in summary.runs)
    if seconds:
        price = f", ${dollars:,.2f}" if dollars else ""
        yield f"All runs together trained for {rough_duration(seconds)}{price}."


def _checks(summary: Summary) -> Iterator[str]:
    for group in summary.compared:
        for name in dict.fromkeys(each.name for run in group.finished for each in run.checks):
            yield _check_of(group, name)
    yield from _checks_between(summary)


def _check_of(group: Group, name: str) -> str:
    """Return what a suite says of the runs of a group, before and after training."""
    counts = [each for run in group.finished for each in run.checks if each.name == name]
    first = counts[0]
    after = " and ".join(str(each.after) for each in counts)
    said = f"{name}, {group.label}: {first.before} of {first.total} before, {after} after"
    ranges = [
        difference_of_shares((each.before, each.total), (each.after, each.total)) for each in counts
    ]
    num_clear = sum(not low <= 0 <= high for low, high in ranges)
    if not num_clear:
        return f"{said}: no difference beyond chance."
    if len(counts) == 1:
        low, high = ranges[0]
        return f"{said}: {100 * low:+.0f} to {100 * high:+.0f} points (95 %)."
    return f"{said}: more than chance explains with {num_clear} of {len(counts)} seeds."


def _checks_between(summary: Summary) -> Iterator[str]:
    """Yield how the group that passes most compares with each other one, suite by suite."""
    for name in dict.fromkeys(each.name for run in summary.runs for each in run.checks):
        hashes = {each.sha256 for run in summary.runs for each in run.checks if each.name == name}
        if len(hashes) > 1:
            yield f"{name}: not compared, because the runs answered different tests of this name."
            continue
        found = contrasts(_shares_failed(summary, name))
        if found:
            yield from (_contrast_of_checks(each, name) for each in found)
        else:
            yield from _checks_of_one_seed(summary, name)


def _shares_failed(summary: Summary, name: str) -> Mapping[str, Mapping[int, float]]:
    """Return label -> seed -> share of the questions that failed after training."""
    found: dict[str, dict[int, float]] = {}
    for group in summary.compared:
        for run in group.finished:
            for each in run.checks:
                if each.name == name:
                    failed = 1 - each.after / each.total
                    found.setdefault(group.label, {})[run.trial.seed] = failed
    return found


def _contrast_of_checks(each: Contrast, name: str) -> str:
    if not each.is_beyond_chance:
        return f"{name}: no difference beyond chance between {each.best} and {each.other}."
    points = f"{100 * each.difference:.0f} ± {100 * each.margin:.0f} points"
    return (
        f"{name}: {each.best} passes more than {each.other}: by {points} "
        f"(95 %, {each.num_seeds} seeds), more than chance explains."
    )


def _checks_of_one_seed(summary: Summary, name: str) -> Iterator[str]:
    passed = {group.label: _passed(group, name) for group in summary.compared}
    known = {label: pair for label, pair in passed.items() if pair[1]}
    if len(known) < 2:
        return
    best = max(known, key=lambda label: known[label][0] / known[label][1])
    for label in known:
        low, _high = difference_of_shares(known[label], known[best])
        if label != best and low <= 0:
            yield f"{name}: no difference beyond chance between {best} and {label}."
        elif label != best:
            yield f"{name}: {best} passes more than {label}, by at least {100 * low:.0f} points."


def _passed(group: Group, name: str) -> tuple[int, int]:
    """Return (passed, questions) of a suite after training, in the first run that has it."""
    for run in group.finished:
        for each in run.checks:
            if each.name == name:
                return each.after, each.total
    return 0, 0


def share_with_interval(passed: int, total: int) -> str:
    """Return "7 of 20 (18 to 57 %)"."""
    low, high = wilson_interval(passed, total)
    return f"{passed} of {total} ({100 * low:.0f} to {100 * high:.0f} %)"


def _cautions(summary: Summary) -> Iterator[str]:
    compared = summary.compared
    if len(compared) < 2:
        yield "Fewer than two ways have a finished run: nothing is compared."
    num_seeds = max((len(group.finished) for group in compared), default=0)
    if num_seeds == 1:
        yield "Each way has one run: a difference may come from the seed. Repeat with --seeds 3."
    elif num_seeds == 2:
        yield "Two seeds tell large differences only."
    missing = [group.label for group in compared if len(group.finished) < num_seeds]
    if missing:
        yield f"Some runs did not finish, so fewer seeds count for {', '.join(missing)}."
    runs = [run for group in compared for run in group.finished if run.run]
    if any(run.run and run.run.peak_kind == "process" for run in runs):
        yield (
            "Trained on a processor: memory is that of the whole process, mostly libraries, and "
            "neither memory nor speed says anything about a GPU."
        )
    if any(run.run and reference_of(run.run.job.model) == "demo" for run in runs):
        yield "The demo model is tiny: its losses say nothing about a real model."
    steps = {run.run.step for run in runs if run.run}
    if len(steps) > 1:
        yield f"Runs took {min(steps):,} to {max(steps):,} steps, so their training is not equal."
    rows = [run.eval_rows for run in runs if run.eval_rows]
    if rows and min(rows) < FEW_ROWS:
        yield f"Only {min(rows):,} rows are evaluated: others may rank the ways differently."
    if compared and not rows:
        yield "No rows were held out: the training loss says nothing of new rows."
    yield from _cautions_on_checks(summary)
    if num_seeds > 1:
        yield "Each seed holds out other rows; runs with one seed share them."
    yield from _cautions_on_settings(summary)


def _cautions_on_checks(summary: Summary) -> Iterator[str]:
    runs = [run for group in summary.compared for run in group.finished if run.run]
    totals = [each.total for run in runs for each in run.checks]
    trained = [figures.run for figures in runs if figures.run]
    if runs and not any(STAGES[run.job.stage].head != "score" for run in trained):
        yield "A reward model writes no answers, so no suite says what it has learnt and lost."
    elif runs and not totals and not summary.unchecked:
        yield (
            "No run was checked, so nothing is said of what it has learnt and lost: `python app.py "
            "check-model RUN` checks one."
        )
    for label, reason in summary.unchecked.items():
        yield f"{label} was not checked: {reason.rstrip('.')}."
    if totals and min(totals) < FEW_CHECKS:
        yield f"A suite has only {min(totals)} questions: its shares are rough."


def _cautions_on_settings(summary: Summary) -> Iterator[str]:
    differing = _differing(summary)
    if "learning_rate" not in {name for run in summary.runs for name in run.trial.settings}:
        yield "One learning rate each: with another, the order may change."
    if differing:
        yield (
            f"The runs differ in {', '.join(differing)}, so their evaluation losses are of other "
            "rows or other tokens: a lower one need not be better."
        )


def _differing(summary: Summary) -> list[str]:
    """Return the settings in which runs differ, of those that decide what they are judged by.

    Only runs with one seed are held against each other: another seed holds out other rows.
    """
    by_seed: dict[int, list[Run]] = {}
    for each in summary.runs:
        if each.run:
            by_seed.setdefault(each.trial.seed, []).append(each.run)
    differing = (each.name for runs in by_seed.values() for each in compare_runs(runs))
    return [name for name in dict.fromkeys(differing) if name in CHANGES_EVALUATION]
