"""Find suites: those that come with Tailor, those of a run, and files. The only reader of
presets/checks."""

from collections.abc import Iterable
from pathlib import Path

from core.job import Problem, SpecError
from core.job.places import require_allowed
from core.models import PRESETS_DIR
from core.training.contract.checks.suite import Suite, UnusableSuite
from core.training.contract.checks.suite_files import SUFFIXES, read_suite

SHIPPED = PRESETS_DIR / "checks"
DEMO = PRESETS_DIR / "demo" / "checks"
DEMO_ROWS = DEMO / "pip"
"""Suites about what the rows of the demo teach."""
CAPABILITIES, IDENTITY, HELD_OUT = "capabilities", "identity", "held-out"
MAX_PROBLEMS = 20
"""Faults of a suite that are named."""


def folders_of(is_demo: bool, *own: Path, has_demo_rows: bool = True) -> tuple[Path, ...]:
    """Return the folders of the suites of a run, the first to look in first.

    The demo model has suites of its own in place of those for real models, and one about what the
    rows of the demo teach it, where it is trained on them.
    """
    if not is_demo:
        return (*own, SHIPPED)
    return (*own, DEMO, DEMO_ROWS) if has_demo_rows else (*own, DEMO)


def names_in(folders: Iterable[Path]) -> tuple[str, ...]:
    """Return the names of the suites in folders."""
    names = []
    for folder in folders:
        found = sorted(folder.glob("*")) if folder.is_dir() else ()
        names += [path.stem for path in found if path.suffix in SUFFIXES]
    return tuple(dict.fromkeys(names))


def find_suite(reference: str, folders: Iterable[Path]) -> Suite:
    """Return the suite of a name or a file. Raises SpecError."""
    searched = tuple(folders)
    known = names_in(searched)
    if reference in known:
        for folder in searched:
            for path in (folder / f"{reference}{suffix}" for suffix in SUFFIXES):
                if path.is_file():
                    return _read(path)
    path = Path(reference)
    is_file = path.suffix.lower() in SUFFIXES
    if is_file:
        require_allowed(path, "suite")
    if not is_file or not path.is_file():
        problem = f"there is no suite {reference[:200]!r}"
        fix = f"name one of {', '.join(known)}, or give the path of a .jsonl or .toml file"
        raise SpecError(Problem("suite", problem, fix))
    return _read(path)


def with_whole_paths(references: str) -> str:
    """Return suites, by commas, with files as they are found from any folder."""
    named = [name.strip() for name in references.split(",") if name.strip()]
    is_file = [Path(name).suffix.lower() in SUFFIXES for name in named]
    pairs = zip(named, is_file, strict=True)
    return ",".join(str(Path(name).absolute()) if is_file else name for name, is_file in pairs)


def _read(path: Path) -> Suite:
    try:
        return read_suite(path)
    except OSError as error:
        problem = f"{path} cannot be read: {error.strerror}"
        raise SpecError(Problem("suite", problem, "give another file")) from None
    except UnusableSuite as error:
        raise SpecError(*problems_of(error)) from None


def problems_of(error: UnusableSuite) -> tuple[Problem, ...]:
    """Return what is wrong with a suite, with the line of each."""
    found = []
    for fault in error.faults[:MAX_PROBLEMS]:
        place = f"{error.name} line {fault.line}" if fault.line else error.name
        found.append(Problem(place, f"{fault.field} {fault.message}", fault.fix))
    left = len(error.faults) - MAX_PROBLEMS
    if left > 0:
        found.append(Problem(error.name, f"{left:,} more problems", "correct these first"))
    return tuple(found)
