"""Comparisons and sweeps on the page: estimates side by side, then one run each in the queue."""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import gradio as gr

from core.advise import PLANNED_FIELDS
from core.after_training.compare import (
    Comparison,
    Study,
    Variant,
    conduct,
    optimizer,
    plan_variants,
    record,
)
from core.after_training.compare.record import AT_ONCE_ON_A_CLUSTER, MOST_AT_ONCE
from core.after_training.compare.search import Search
from core.after_training.compare.study import axes_of, require_one_card
from core.dataset import counted
from core.job import Problem, SpecError
from core.runs import Home
from core.runs.engines import Placement
from ui import render
from ui.events import Updates
from ui.form import in_words
from ui.handlers.answer import Answer
from ui.handlers.command import place_words
from ui.handlers.placing import NOTHING_ASKED, chosen, placement_of
from ui.handlers.rows import Previews
from ui.handlers.start import require_startable
from ui.render import comparison as panel

METHODS = ("full", "lora", "qlora")
MAX_DRAWN = 12
"""Ways that are drawn side by side. More are only counted."""


@dataclass(frozen=True)
class Sweep:
    """What varies between the runs of the form's job, as the panel says it."""

    methods: tuple[str, ...] = METHODS
    """None stands for the method of the form."""
    lines: tuple[str, ...] = ()
    """One setting each, such as `lora_r = 8, 32`."""
    num_seeds: int = 1
    num_tried: int = 0
    """Runs whose settings Optuna chooses; 0 for every combination."""
    at_once: int = AT_ONCE_ON_A_CLUSTER
    """Runs of such a search that a cluster has at once."""

    @classmethod
    def sent(
        cls,
        methods: list[str],
        lines: str,
        num_seeds: float | None,
        num_tried: float | None,
        *,
        at_once: float | None = None,
    ) -> "Sweep":
        """Return what the controls of the panel say."""
        found = tuple(line.strip() for line in lines.splitlines() if line.strip())
        seeds = 1 if num_seeds is None else int(num_seeds)
        usual = AT_ONCE_ON_A_CLUSTER
        most = int(usual if at_once is None else at_once)
        return cls(tuple(methods), found, seeds, int(num_tried or 0), most)

    def study(self, answer: Answer) -> Study:
        """Return every combination. Raises SpecError."""
        axes = axes_of(self.lines)
        require_one_card(axes)
        return Study.parse(_given(answer), self.methods, axes, self.num_seeds)

    def search(self, answer: Answer) -> Search | None:
        """Return the search, None for every combination. Raises SpecError, without Optuna too."""
        if not self.num_tried:
            return None
        optimizer.require_installed()
        if self.num_seeds > 1:
            fix = "set the seeds to 1; repeat the best settings with several seeds afterwards"
            raise SpecError(Problem("seeds", "a search tries each setting with one seed", fix))
        if not 0 < self.at_once <= MOST_AT_ONCE:
            problem = f"{self.at_once:,} is not a number from 1 to {MOST_AT_ONCE}"
            raise SpecError(Problem("runs at once", problem, "give the number of runs at once"))
        axes = axes_of(self.lines)
        require_one_card(axes)
        found = Search.parse(_given(answer), self.methods, axes, self.num_tried)
        return replace(found, rows=answer.require().rows)

    def command(self, methods: tuple[str, ...], place: Mapping[str, str]) -> str:
        """Return the command that asks the same of the form's job, by these methods, there.

        Raises SpecError for a line that cannot be read.
        """
        words = ["python app.py compare job.json", f"--methods {','.join(methods)}"]
        if self.num_tried:
            words.append(f"--optimize {self.num_tried}")
            if place and self.at_once != AT_ONCE_ON_A_CLUSTER:
                words.append(f"--at-once {self.at_once}")
        elif self.num_seeds > 1:
            words.append(f"--seeds {self.num_seeds}")
        for name, values in axes_of(self.lines).items():
            words.append(f"--axis {shlex.quote(name + '=' + ','.join(values))}")
        return " ".join([*words, *place_words(place)])


FIRST_SWEEP = Sweep()


def _given(answer: Answer) -> dict[str, object]:
    """Return the form's fields without those that its profile chose, so that it chooses again for
    each run. Raises SpecError."""
    planned = PLANNED_FIELDS & answer.require().plan.change.keys()
    return {name: value for name, value in answer.values.items() if name not in planned}


def variants_of(answer: Answer, sweep: Sweep = FIRST_SWEEP) -> tuple[Variant, ...]:
    """Return every way of a sweep with its first seed, estimated. Raises SpecError."""
    resolved = answer.require()
    study = replace(sweep.study(answer), num_seeds=1)
    return plan_variants(study, resolved.rows, lambda _variant: resolved.past)


def drawn(answer: Answer, sweep: Sweep) -> str:
    """Return the estimates of a sweep side by side, as HTML. Raises SpecError."""
    if search := sweep.search(answer):
        first = replace(sweep, lines=(), num_tried=0)
        found = panel.estimates(variants_of(answer, first))
        return found + render.notice(f"{search.question} Optuna chooses them one by one.", "plain")
    study = sweep.study(answer)
    num_ways = study.num_points
    said = f"{counted(num_ways * study.num_seeds, 'run')} in all."
    if num_ways > MAX_DRAWN:
        said += " Too many ways to show side by side: those that do not fit are left out."
        return render.notice(said, "plain")
    found = panel.estimates(variants_of(answer, sweep))
    return found + (render.notice(said, "plain") if study.axes or study.num_seeds > 1 else "")


@dataclass(frozen=True)
class CompareHandlers:
    """Events of the comparison of methods and settings, over one home folder."""

    home: Home
    previews: Previews
    show: Callable[..., Updates]
    """Returns what the Runs tab shows for a view with another comparison."""

    def on_compare(
        self,
        answer: Answer,
        sweep_methods: list[str],
        sweep_lines: str,
        sweep_seeds: float | None,
        sweep_tried: float | None,
        *,
        sweep_at_once: float | None = None,
        where: str = "",
        place: Mapping[str, object] = NOTHING_ASKED,
        **view: str | None,
    ) -> Updates:
        """Create one run for each way that fits, queue them or send them to the cluster that the
        form names, and show them."""
        asked = (sweep_methods, sweep_lines, sweep_seeds, sweep_tried)
        sweep = Sweep.sent(*asked, at_once=sweep_at_once)
        try:
            require_startable(answer.require(), self.previews)
            placement = placement_of(where, place)
            kept = self._kept(answer, sweep, placement, chosen(where, place))
            comparison = conduct.start(self.home, kept)
        except SpecError as error:
            return {"compare_message": render.notice(f"Not started. {in_words(error)}.", "bad")}
        except OSError as error:
            said = f"Not started. {error.strerror}: {error.filename}"
            return {"compare_message": render.notice(said, "bad")}
        return self._begun(comparison, view)

    def _begun(self, comparison: Comparison, view: Mapping[str, str | None]) -> Updates:
        """Show the runs of a comparison that was started."""
        compared = " ".join(trial.id for trial in comparison.trials if trial.id)
        shown = {"comparison_id": comparison.id, "compared": compared}
        return {
            **self.show(**{**view, **shown}),
            "compared": compared,
            "comparisons_panel": gr.update(visible=True, open=True),
            "tabs": gr.update(selected="runs"),
            "compare_message": render.notice(_said(comparison)),
        }

    def _kept(
        self, answer: Answer, sweep: Sweep, placement: Placement, place: Mapping[str, str]
    ) -> Comparison:
        """Keep a new comparison. Raises SpecError, OSError."""
        search = sweep.search(answer)
        asked = search or sweep.study(answer)
        conduct.require_possible(self.home, placement, asked)
        found: tuple[Variant, ...] = ()
        if isinstance(asked, Study):
            past = answer.require().past
            found = plan_variants(asked, self.previews.statistics, lambda _variant: past)
        return record.new_comparison(
            self.home,
            found,
            asked.question,
            sweep.command(asked.methods, place),
            search=search,
            has_checks=True,
            placement=placement,
            at_once=0 if placement.is_here else sweep.at_once,
        )


def _said(comparison: Comparison) -> str:
    """Return what was begun."""
    num_runs = sum(bool(trial.id) for trial in comparison.trials)
    place = comparison.placement
    begun = "Queued" if place.is_here else f"Sent to {place.title}:"
    said = f"{begun} {counted(num_runs, 'run')}: the Runs tab shows them."
    if comparison.num_missing:
        most = counted(comparison.most_at_once, "run")
        said += f" Optuna chooses {comparison.num_missing} more, with {most} at once."
    said += " Once all have ended, each is checked: what it has learnt and lost."
    for trial in comparison.trials:
        if trial.left_out:
            said += f" {trial.point.label} is left out: {trial.left_out}."
    return said
