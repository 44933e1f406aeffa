"""Variants: each run of a comparison before it exists, estimated, and left out with a reason."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from core.advise import Case
from core.advise.batch import USUAL_GPUS
from core.after_training.compare.study import Budget, Point, Study
from core.job import Problem, SpecError
from core.memory import MemoryEstimate
from core.models import Gpu, gpus
from core.resolve import PastRunsOf, ResolvedJob, RowsOf, no_past_runs, resolve
from core.speed import RowStatistics, Speed
from core.wording import memory, rough_duration

GIB = 2**30
NONE = "–"
"""Stands where a variant has no estimate for a card."""
CHANGES_ROWS = frozenset(
    {
        "model",
        "revision",
        "dataset",
        "eval_dataset",
        "eval_fraction",
        "mix",
        "max_rows",
        "max_length",
        "use_chat_template",
    }
)
"""Job fields that decide which rows there are, and how long they are."""
Rows = RowStatistics | RowsOf | None
"""Facts of the data of a job, a function that finds them, or None if they are unknown."""


@dataclass(frozen=True)
class Variant:
    """Run of a comparison before it exists."""

    point: Point
    seed: int
    resolved: ResolvedJob | None = None
    """None if no job can be like this."""
    estimate: MemoryEstimate | None = None
    """None for an unknown architecture."""
    speed: Speed | None = None
    """None on a CPU."""
    left_out: str = ""
    """Why it will not run, one sentence; "" if it will."""
    fix: str = ""
    """What would let it run."""


def plan_variants(
    study: Study, rows: Rows = None, past: PastRunsOf = no_past_runs
) -> tuple[Variant, ...]:
    """Return every run of a comparison, the first seed of all points first.

    So a comparison that ends early has compared as much as it can. `rows` are those of the job, or
    a function that measures those of each point. Raises SpecError for a budget in dollars on a card
    whose price is unknown.
    """
    first = [plan_variant(study, point, rows, past) for point in study.points()]
    require_prices(study.budget, first)
    found = [_with_seed(each, seed) for seed in study.seeds for each in first]
    return _within(study.budget, found)


def on_other_cards(
    variant: Variant, cards: Sequence[str] = USUAL_GPUS
) -> Mapping[str, tuple[MemoryEstimate, Speed | None]]:
    """Return GPU preset -> memory and speed of a variant there; {} if it has no estimate."""
    resolved = variant.resolved
    if resolved is None or resolved.model.shape is None:
        return {}
    found = {}
    for card in cards:
        case = Case(resolved.job, resolved.model.shape, gpus()[card], resolved.rows)
        found[card] = (case.memory, case.speed)
    return found


def rows_of_other_cards(variants: Sequence[Variant]) -> list[tuple[str, ...]]:
    """Return a row for each usual card: its name, then memory, time and price of each variant."""
    columns = [on_other_cards(each) for each in variants]
    rows = []
    for card in dict.fromkeys(card for column in columns for card in column):
        cells = []
        for column in columns:
            cells.append(_on_card(*column[card]) if card in column else NONE)
        rows.append((gpus()[card].name, *cells))
    return rows


def _on_card(estimate: MemoryEstimate, speed: Speed | None) -> str:
    said = memory(estimate.total_bytes)
    if estimate.verdict == "does_not_fit":
        return f"{said} too large"
    if speed and speed.hours is not None:
        said += f" {rough_duration(3600 * speed.hours)}"
        said += f" ${speed.usd:,.2f}" if speed.usd is not None else ""
    return said


def plan_variant(study: Study, point: Point, rows: Rows, past: PastRunsOf) -> Variant:
    """Return one run with the first seed, left out if it cannot be or does not fit.

    Rows of the job say nothing of a point with other rows, or with rows that are cut elsewhere.
    """
    if isinstance(rows, RowStatistics) and CHANGES_ROWS & point.settings.keys():
        rows = None
    seed = study.seeds[0]
    try:
        resolved = resolve(study.fields_of(point), rows=rows, past=past)
        resolved.require_trainable()
        estimate = resolved.estimate() if resolved.model.shape else None
    except SpecError as error:
        return Variant(point, seed, left_out=_reason(error.problems), fix=error.problems[0].fix)
    variant = Variant(point, seed, resolved, estimate, resolved.speed())
    if estimate is not None and estimate.verdict == "does_not_fit":
        reason = _too_large(estimate, resolved.gpu)
        return replace(variant, left_out=reason, fix=_what_fits(resolved))
    return variant


def _with_seed(variant: Variant, seed: int) -> Variant:
    resolved = variant.resolved
    if resolved is not None:
        resolved = replace(resolved, job=resolved.job.model_copy(update={"seed": seed}))
    return replace(variant, seed=seed, resolved=resolved)


def require_prices(budget: Budget, found: Sequence[Variant]) -> None:
    """Raise SpecError for a limit in dollars on a card whose price is unknown."""
    for each in found:
        if budget.max_usd is None or each.left_out or each.resolved is None:
            continue
        gpu = each.resolved.gpu
        if gpu.usd_per_hour is None:
            fix = "limit the time with --max-hours, or the number of runs with --max-runs"
            raise SpecError(Problem("max-usd", f"no price is known for {gpu.name}", fix))


def _reason(problems: Sequence[Problem]) -> str:
    return "; ".join(f"{each.field}: {each.problem}" for each in problems)


def _too_large(estimate: MemoryEstimate, gpu: Gpu) -> str:
    needed = f"{estimate.total_bytes / GIB:.1f} GiB"
    return f"needs {needed}, {gpu.name} has {gpu.capacity_bytes / GIB:.1f} GiB"


def _what_fits(resolved: ResolvedJob) -> str:
    """Return the gentlest change that makes a job fit, or the smallest card that is enough."""
    for fix in resolved.fixes():
        if fix.fits:
            change = ", ".join(f"{name} {value}" for name, value in fix.change.items())
            return f"{fix.title} ({change})"
    assert resolved.model.shape is not None
    for gpu in sorted(gpus().values(), key=lambda gpu: gpu.capacity_bytes):
        if Case(resolved.job, resolved.model.shape, gpu, resolved.rows).fits:
            return f"a card such as {gpu.name}"
    return "a smaller model, or several cards"


def _within(budget: Budget, found: Sequence[Variant]) -> tuple[Variant, ...]:
    return tuple(_spend(budget, found))


def _spend(budget: Budget, found: Sequence[Variant]) -> Iterator[Variant]:
    """Yield the variants; those beyond the budget are left out."""
    num_runs, hours, usd = 0, 0.0, 0.0
    for each in found:
        if each.left_out:
            yield each
            continue
        more_hours = (each.speed.hours if each.speed else None) or 0.0
        more_usd = (each.speed.usd if each.speed else None) or 0.0
        beyond = _beyond(budget, num_runs + 1, hours + more_hours, usd + more_usd)
        if beyond:
            yield replace(each, left_out=beyond, fix="raise the limit")
            continue
        num_runs, hours, usd = num_runs + 1, hours + more_hours, usd + more_usd
        yield each


def _beyond(budget: Budget, num_runs: int, hours: float, usd: float) -> str:
    """Return which limit so many runs, hours and dollars exceed, "" for none."""
    if budget.max_runs is not None and num_runs > budget.max_runs:
        return f"beyond the budget of {budget.max_runs} runs"
    if budget.max_hours is not None and hours > budget.max_hours:
        return f"beyond the budget of {budget.max_hours:g} h: the forecast is {hours:.1f} h with it"
    if budget.max_usd is not None and usd > budget.max_usd:
        return f"beyond the budget of ${budget.max_usd:g}: the forecast is ${usd:.2f} with it"
    return ""
