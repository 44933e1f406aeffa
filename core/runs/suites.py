"""Copy the suites that a run is checked with while it trains into its folder."""

import json
from collections.abc import Sequence
from functools import cache
from itertools import islice
from pathlib import Path

from core.job import JobSpec, Problem, SpecError
from core.models import PRESETS_DIR
from core.resolve import reference_of
from core.runs.checks import find_suite, folders_of, names_in
from core.training.contract.checks.suite import Suite
from core.training.contract.checks.suite_files import to_lines
from core.training.contract.files import write_text
from core.training.contract.job import USUAL_SUITES, suite_of

FOLDER = "data/suites"
PERPLEXITY, MAX_NAME = "perplexity", 100
"""Name of another file among the results of suites, and longest name of one."""

ROWS_READ, DEMO_SHARE = 2000, 0.1
"""Rows of a run that are compared with the demo's, and the part of them that makes its data the
demo's. A mix has other rows too."""


def write_suites(job: JobSpec, folder: Path) -> dict[str, object]:
    """Write the suites of a job into the folder of its run.

    Return the job fields that this changes, with paths relative to the folder. Raises OSError,
    SpecError for suites that cannot be used.
    """
    if not job.check_steps:
        return {"check_suites": ""}
    if job.num_devices > 1:  # of a job that takes every device
        fix = "set check_steps to 0, and check its result"
        raise SpecError(Problem("check_steps", "takes one device, and the job has more", fix))
    place = folder / FOLDER
    place.mkdir(parents=True)
    names = []
    for suite in _suites_of_job(job, folder):
        write_text(place / f"{suite.name}.jsonl", to_lines(suite))
        names.append(f"{FOLDER}/{suite.name}.jsonl")
    return {"check_suites": ",".join(names)}


def _suites_of_job(job: JobSpec, run_folder: Path) -> tuple[Suite, ...]:
    """Return the suites that a job names, else the usual ones. Raises SpecError."""
    folders = folders_of(is_demo(job), has_demo_rows=has_demo_rows(job, run_folder))
    named = [name.strip() for name in job.check_suites.split(",") if name.strip()]
    if not named:
        named = [*usual_in(names_in(folders))]
    suites = tuple(find_suite(name, folders) for name in named)
    require_distinct_names(suites)
    names = [suite.name for suite in suites]
    if suite_of(job.keep_best) not in (None, *names):
        problem = f"there is no suite {job.keep_best} for this model and these rows"
        fix = f"choose {' or '.join(names)}, or name its file in check_suites"
        raise SpecError(Problem("keep_best", problem, fix))
    return suites


def usual_in(names: Sequence[str]) -> tuple[str, ...]:
    """Return those of some names that are asked unless others are named."""
    return tuple(name for name in USUAL_SUITES if name in names)


def require_distinct_names(suites: tuple[Suite, ...]) -> None:
    """Raise SpecError if a suite cannot be known by its name, by which results are kept."""
    names = [suite.name for suite in suites]
    for name in names:
        if name == PERPLEXITY or len(name) > MAX_NAME:
            problem = f"{name[:MAX_NAME]} cannot be the name of a suite"
            raise SpecError(Problem("suite", problem, "give the file a short name of its own"))
        if names.count(name) > 1:
            raise SpecError(Problem("suite", f"two are called {name}", "rename one of the files"))


def is_demo(job: JobSpec) -> bool:
    """Return True if a job trains the demo model: that of this Tailor or of another copy of it."""
    return reference_of(job.model) == "demo"


def has_demo_rows(job: JobSpec, folder: Path) -> bool:
    """Return True if the rows in the folder of a run are those of the demo, or a mix with them."""
    if job.dataset == "demo":
        return True
    try:
        with (folder / "data" / "train.jsonl").open(encoding="utf-8") as lines:
            read = [_normal(line) for line in islice(lines, ROWS_READ)]
    except (OSError, ValueError):
        return False
    num_found = sum(row in _demo_rows() for row in read)
    return num_found > 0 and num_found >= DEMO_SHARE * len(read)


@cache
def _demo_rows() -> frozenset[str]:
    rows: set[str] = set()
    for path in (PRESETS_DIR / "demo").glob("*.jsonl"):
        rows.update(map(_normal, path.read_text(encoding="utf-8").splitlines()))
    return frozenset(rows)


def _normal(line: str) -> str:
    """Return a row without what may differ in its writing. Raises ValueError."""
    return json.dumps(json.loads(line), sort_keys=True)
