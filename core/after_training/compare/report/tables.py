"""Tables of a report: heads and cells as plain text, for HTML and Markdown alike."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from core.after_training.compare.report.sentences import JUDGES, share_with_interval
from core.after_training.compare.report.summary import Group, RunFigures, Spread, Summary
from core.after_training.differences import compare_runs
from core.runs.sentences import state_sentence
from core.wording import MEASURED, count, duration, memory

NONE = "–"
VERSIONS = ("python", "torch", "transformers", "trl", "peft", "bitsandbytes")

RESULTS = (
    "",
    "trainable",
    "memory predicted",
    "measured",
    "tokens/s",
    "time",
    "price",
    "training loss",
    "evaluation loss",
    "perplexity",
    "seeds",
)
"""Heads of the first table."""
SPREAD = "Mean over the seeds ± their standard deviation."
FIRST_RUN = "Of the first finished run of each way."
"""Said of tables with one run of each group, where there are several."""


@dataclass(frozen=True)
class Table:
    """Rows of text under heads."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    """What its numbers are, one sentence."""


def tables(summary: Summary) -> list[Table]:
    """Return the tables of a report that are not empty."""
    found = (_results(summary), _checks(summary), _peaks(summary), _runs(summary))
    return [table for table in (*found, _settings(summary), _versions(summary)) if table.rows]


def spread(value: Spread | None, digits: int = 3) -> str:
    """Return "1.234 ± 0.056", the mean and the standard deviation over the seeds."""
    if value is None:
        return NONE
    said = f"{value.mean:,.{digits}f}"
    if value.deviation is None:
        return said
    return f"{said} ± {value.deviation:,.{digits}f}"


def _results(summary: Summary) -> Table:
    rows = tuple(_result(group, summary.best) for group in summary.compared)
    notes = []
    if len(rows) > 1:
        notes.append(f"★ lowest {JUDGES[summary.judged_by]}.")
    if _has_seeds(summary):
        notes.append(SPREAD)
    return Table("Results", RESULTS, rows, " ".join(notes))


def _has_seeds(summary: Summary) -> bool:
    return any(len(group.finished) > 1 for group in summary.groups)


def _result(group: Group, best: Group | None) -> tuple[str, ...]:
    shown = group.shown
    seconds, usd = group.spread("seconds"), group.spread("usd")
    label = f"★ {group.label}" if group is best else group.label
    time = price = NONE
    if seconds:
        time = duration(seconds.mean)
    if usd:
        price = f"${usd.mean:,.2f}"
    return (
        label,
        _count(shown.num_trainable_parameters),
        _memory(shown.predicted_bytes),
        _memory_of(group.spread("peak_bytes")),
        spread(group.spread("tokens_per_second"), 0),
        time,
        price,
        spread(group.spread("loss")),
        spread(group.spread("eval_loss")),
        spread(group.spread("eval_perplexity"), 2),
        str(len(group.finished)),
    )


def _count(number: int | None) -> str:
    if number is None:
        return NONE
    return count(number)


def _memory_of(mean: Spread | None) -> str:
    if mean is None:
        return NONE
    return memory(mean.mean)


def _memory(num_bytes: int | None) -> str:
    if num_bytes is None:
        return NONE
    return memory(num_bytes)


def _checks(summary: Summary) -> Table:
    rows = []
    for group in summary.compared:
        for run in group.finished:
            label = group.label
            if _has_seeds(summary):
                label += f", seed {run.trial.seed}"
            for each in run.checks:
                before = share_with_interval(each.before, each.total)
                after = share_with_interval(each.after, each.total)
                rows.append((label, each.name, before, after))
    heads = ("", "suite", "before (95 % interval)", "after (95 % interval)")
    return Table("Checks", heads, tuple(rows))


def _peaks(summary: Summary) -> Table:
    rows = []
    for group in summary.compared:
        for name, (predicted, measured) in group.shown.phases.items():
            error = f"{predicted / measured - 1:+.1%}"
            title = MEASURED.get(name, name)
            rows.append((group.label, title, memory(predicted), memory(measured), error))
    heads = ("", "phase", "predicted", "measured", "difference")
    return Table("Memory by phase", heads, tuple(rows), FIRST_RUN if _has_seeds(summary) else "")


def _runs(summary: Summary) -> Table:
    heads: tuple[str, ...] = ("run", "", "seed", "state", "loss", "evaluation loss", "peak")
    rows = [(*_run(each), _what_happened(each)) for each in summary.runs]
    if any(row[-1] for row in rows):
        return Table("Every run", (*heads, "what happened"), tuple(rows))
    return Table("Every run", heads, tuple(row[:-1] for row in rows))


def _what_happened(each: RunFigures) -> str:
    """Return why a run has not finished, "" if it has or may still."""
    if each.trial.left_out and each.trial.fix:
        return f"{each.reason}. What would help: {each.trial.fix}."
    if each.trial.pruned:
        return each.trial.pruned
    if each.run is not None and each.state == "stopped":
        return state_sentence(each.run)
    if each.state == "deleted":
        return "Its folder is gone: it was deleted."
    return each.reason


def _run(each: RunFigures) -> tuple[str, ...]:
    return (
        each.trial.id or NONE,
        each.trial.point.label,
        str(each.trial.seed),
        each.state,
        _number(each.loss),
        _number(each.eval_loss),
        _memory(each.peak_bytes),
    )


def _number(value: float | None) -> str:
    if value is None:
        return NONE
    return f"{value:.4g}"


def _settings(summary: Summary) -> Table:
    """Return the settings that differ between the groups."""
    shown = [(group.label, group.shown.run) for group in summary.groups if group.shown.run]
    runs = [run for _, run in shown if run]
    if len(runs) < 2:
        return Table("Settings that differ", (), ())
    labels = [label for label, _ in shown]
    columns = [
        [each.name, *(NONE if value is None else str(value) for value in each.values)]
        for each in compare_runs(runs)
        if not each.is_result
    ]
    rows = [["", *labels], *columns]
    if len(labels) > len(columns):  # the longer side goes down the page
        rows = list(map(list, zip(*rows, strict=True)))
    heads, *rest = map(tuple, rows)
    return Table("Settings that differ", heads, tuple(rest))


def _versions(summary: Summary) -> Table:
    rows = tuple(_facts(summary))
    return Table("Machine and versions", ("", ""), rows)


def _facts(summary: Summary) -> Iterator[tuple[str, str]]:
    runs = [each.run for each in summary.runs if each.run and each.run.status.device]
    devices = dict.fromkeys(str(run.status.device) for run in runs)
    if devices:
        yield "device", ", ".join(devices)
    for name in VERSIONS:
        found = dict.fromkeys(run.status.versions.get(name, "") for run in runs)
        said = ", ".join(filter(None, found))
        if said:
            yield name, said


def answers(summary: Summary) -> list[Table]:
    """Return a table for each question: the answers of every group, before and after training."""
    shown: Sequence[Group] = [group for group in summary.groups if group.shown.run]
    samples = {group.label: group.shown.run.samples() for group in shown if group.shown.run}
    found = []
    for prompt in dict.fromkeys(each.prompt for rows in samples.values() for each in rows):
        rows = []
        for label, given in samples.items():
            mine = [each for each in given if each.prompt == prompt]
            if mine:
                after = mine[-1].answer if len(mine) > 1 else NONE
                rows.append((label, mine[0].answer, after))
        found.append(Table(prompt, ("", "before", "after"), tuple(rows)))
    return found
