"""Flags of `compare` as a study, and the command that asks the same again. Prints notes."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from core.after_training.compare import Study, conduct
from core.after_training.compare.optimizer import require_installed
from core.after_training.compare.record import MOST_AT_ONCE
from core.after_training.compare.search import Search
from core.after_training.compare.study import Budget, axes_of, names_in
from core.job import Problem, SpecError
from core.models import demo_fields
from core.runs import Home
from core.runs.engines import Placement
from core.training.contract.stages import DEFAULT_STAGE
from ui.terminal.job_fields import fields_of_job, find_data, require_choice
from ui.terminal.placing import placement_of
from ui.terminal.usage import flag_of, is_whole

DEFAULT_METHODS = "full,lora,qlora"
MAX_SHOWN = 40
"""Characters of a wrong number that a message repeats."""


@dataclass(frozen=True)
class StudyFlags:
    """Flags that say what is compared, as they were typed."""

    demo: bool = False
    job: str | None = None
    columns: str = ""
    split_text: str = ""
    methods: str = ""
    seeds: str = "1"
    axis: tuple[str, ...] = ()
    max_runs: str = ""
    max_hours: str = ""
    max_usd: str = ""
    optimize: str = ""
    """Number of runs that an optimizer may try, "" for a grid."""
    at_once: str = ""
    no_checks: bool = False
    fields: Mapping[str, str] = field(default_factory=dict)
    """Flags of job fields, `field_lora_r` and the like."""
    place: Mapping[str, str] = field(default_factory=dict)
    """Flags that say where the runs train, such as `on` and `partition`."""

    def placement(self, home: Home, asked: Study | Search) -> Placement:
        """Return where the runs train. Raises SpecError for a cluster that cannot have them, or not
        so many at once."""
        placement = placement_of(self.place) or Placement()
        self.num_at_once(placement)
        conduct.require_possible(home, placement, asked)
        return placement

    def num_at_once(self, placement: Placement) -> int:
        """Return how many runs of a search may train at once on a cluster, 0 for the usual
        number. Raises SpecError."""
        if not self.at_once:
            return 0
        if placement.is_here:
            problem = "on this machine one run trains on each device"
            raise SpecError(Problem("at-once", problem, "leave it out, or add --on slurm"))
        if not is_whole(self.at_once) or not 0 < int(self.at_once) <= MOST_AT_ONCE:
            problem = f"{self.at_once[:MAX_SHOWN]!r} is not a number from 1 to {MOST_AT_ONCE}"
            raise SpecError(Problem("at-once", problem, "give the number of runs at once"))
        return int(self.at_once)

    def study(self, home: Home) -> Study:
        """Return the study. Imports its data if it must. Raises TailorError."""
        axes, methods = self.axes(), self.methods
        if not methods and not axes:
            methods = DEFAULT_METHODS
        given, num_seeds = self._given(home), self._number_of_seeds()
        return Study.parse(given, names_in(methods), axes, num_seeds, self.budget())

    def search(self, home: Home) -> Search:
        """Return the search of --optimize. Imports its data if it must. Raises TailorError."""
        require_installed()
        if self.seeds != "1":
            fix = "leave out --seeds; repeat the best settings with several seeds afterwards"
            raise SpecError(Problem("seeds", "a search tries each setting with one seed", fix))
        if not is_whole(self.optimize):
            problem = f"{self.optimize[:MAX_SHOWN]!r} is not a number of runs"
            raise SpecError(Problem("optimize", problem, "give one, such as --optimize 20"))
        axes = self.axes()
        num_runs = int(self.optimize)
        if max_runs := self.budget().max_runs:
            num_runs = min(num_runs, max_runs)
        return Search.parse(self._given(home), names_in(self.methods), axes, num_runs)

    def _given(self, home: Home) -> dict[str, object]:
        """Return the fields that the user gave. Imports the data if it must."""
        given = fields_of_job(self.job, self.fields)
        if self.demo:
            given = {**demo_fields(str(given.get("stage", DEFAULT_STAGE))), **given}
        else:
            require_choice(given)
        given |= find_data(home, given, self.columns, self.split_text)
        return given

    def axes(self) -> Mapping[str, Sequence[str]]:
        """Return the axes as they were typed. Raises SpecError for one that is given twice."""
        return axes_of(self.axis)

    def command(self) -> str:
        """Return the command that asks the same again."""
        words = ["python app.py compare"]
        if self.job:
            words.append(shlex.quote(self.job))
        if self.demo:
            words.append("--demo")
        names = ("methods", "seeds", "optimize", "at_once", "max_runs", "max_hours", "max_usd")
        for name in (*names, "columns", "split_text"):
            value = getattr(self, name)
            if value and (name, value) != ("seeds", "1"):
                words.append(f"{flag_of(name)} {shlex.quote(value)}")
        if self.no_checks:
            words.append("--no-checks")
        words += [f"--axis {shlex.quote(each)}" for each in self.axis]
        words += [f"{flag_of(name)} {shlex.quote(value)}" for name, value in self.place.items()]
        for name, value in self.fields.items():
            words.append(f"{flag_of(name.removeprefix('field_'))} {shlex.quote(value)}")
        return " ".join(words)

    def _number_of_seeds(self) -> int:
        if not is_whole(self.seeds) or not 0 < int(self.seeds) <= 100:
            problem = f"{self.seeds[:MAX_SHOWN]!r} is not a number from 1 to 100"
            raise SpecError(Problem("seeds", problem, "give the number of runs of each"))
        return int(self.seeds)

    def budget(self) -> Budget:
        """Return the limits. Raises SpecError."""
        return Budget(
            max_runs=_whole_number("max-runs", self.max_runs),
            max_hours=_number("max-hours", self.max_hours),
            max_usd=_number("max-usd", self.max_usd),
        )


def _whole_number(flag: str, text: str) -> int | None:
    number = _number(flag, text)
    if number is None:
        return None
    if not number.is_integer():
        raise SpecError(
            Problem(flag, f"{text[:MAX_SHOWN]!r} is not a whole number", "give one, such as 6")
        )
    return int(number)


def _number(flag: str, text: str) -> float | None:
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        number = 0
    if not 0 < number < 1e9:
        raise SpecError(
            Problem(flag, f"{text[:MAX_SHOWN]!r} is not a number above 0", "give one, such as 2")
        )
    return number
