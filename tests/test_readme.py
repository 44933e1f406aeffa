"""The README tells the truth: its tables, counts, commands and paths are those of the code."""

import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from benchmarks import stage_table
from benchmarks.trace_agreement import cases
from core import runs
from core.job import REWARD_FUNCTIONS, JobSpec, OptimizerName
from core.models import gpus, models
from core.runs import Home
from core.training.contract.methods import METHODS, Method
from core.training.contract.optimizers import EXTRA_OPTIMIZERS
from core.training.contract.row_formats import ROW_FORMATS, accepts
from core.training.contract.stages import STAGES
from ui import page
from ui.handlers import Handlers
from ui.render.run import BUNDLE_LABEL
from ui.terminal.commands import COMMANDS
from ui.terminal.usage import RUN_ACTIONS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
LINES = frozenset(README.splitlines())


def section(heading: str) -> str:
    """What stands under a heading."""
    return README.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def printed(command: str) -> list[str]:
    """The lines that a command of the README prints."""
    assert f"`{command}" in README
    arguments = command.split()[1:]
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, encoding="utf-8", check=True
    )
    return done.stdout.splitlines()


# The house


def test_every_room_of_the_house_has_a_line() -> None:
    listed = set(re.findall(r"^    ([\w./-]+) +\S", section("The house"), re.MULTILINE))
    rooms = [
        ROOT / "app.py",
        *(path for floor in ("core", "ui", "presets") for path in (ROOT / floor).iterdir()),
    ]
    named = {
        f"{path.relative_to(ROOT)}{'/' if path.is_dir() else ''}"
        for path in rooms
        if path.name[0] not in "._"
    }
    assert named <= listed


def test_every_line_of_the_house_is_a_room() -> None:
    listed = re.findall(r"^    ([\w./-]+) +\S", section("The house"), re.MULTILINE)
    assert listed and not [name for name in listed if not (ROOT / name).exists()]


def defines(path: Path, name: str) -> bool:
    """True if a module gives a meaning to a name."""
    return (
        re.search(rf"^(class )?{name}\b.*[=:(]", path.read_text(encoding="utf-8"), re.MULTILINE)
        is not None
    )


def test_what_a_newcomer_touches_is_there() -> None:
    places = re.findall(r"`([\w/]+(?:/|\.toml|\.py))(?::(\w+))?`", section("The house"))
    assert len(places) > 15
    for path, name in places:
        assert (ROOT / path).exists() and (not name or defines(ROOT / path, name)), f"{path}:{name}"


def test_every_benchmark_that_it_names_is_there() -> None:
    named = re.findall(r"benchmarks[/.](\w+)(?:\.py)?", README)
    assert named and all((ROOT / "benchmarks" / f"{name}.py").is_file() for name in named)


def test_every_file_that_it_shows_is_there() -> None:
    assert all((ROOT / path).is_file() for path in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README))


def test_every_file_of_the_demo_has_a_line_with_its_number_of_rows() -> None:
    demo, told = (
        ROOT / "presets" / "demo",
        (ROOT / "presets" / "demo" / "README.md").read_text(encoding="utf-8"),
    )
    files = [path for path in demo.iterdir() if path.name[0] not in "._" and path.suffix != ".md"]
    assert not [
        path.name
        for path in files
        if f"| `{path.name}{'/' if path.is_dir() else ''}` |" not in told
    ]
    for path in demo.glob("*.jsonl"):
        assert f"| `{path.name}` | {len(path.read_bytes().splitlines())} " in told


# The page and the command line


def labels_of_the_page(home: Home) -> set[str]:
    """Return the labels of controls, buttons, folds and tabs, and the choices of a control."""
    labels = {BUNDLE_LABEL}
    for component in page.build(Handlers(home)).config["components"]:
        props = component["props"]
        texts = [props.get("label"), *(choice[0] for choice in props.get("choices") or ())]
        if component["type"] in ("button", "html"):
            texts.append(props.get("value"))
        labels |= {re.sub("<[^>]+>", "", text) for text in texts if isinstance(text, str)}
    return labels


def test_every_label_of_the_page_is_on_the_page(home: Home) -> None:
    told = re.findall(r"\*\*(.+?)\*\*", section("The page"), re.DOTALL)
    labels = {" ".join(label.split()) for label in told}
    assert len(labels) > 25
    assert labels - labels_of_the_page(home) == set()


def test_every_command_and_every_action_on_runs_is_told() -> None:
    terminal = section("From a terminal")
    assert all(f"python app.py {command} " in terminal for command in COMMANDS)
    asked = (" ".join(("runs", action, *wanted.words)) for action, wanted in RUN_ACTIONS.items())
    assert not [line for line in asked if line not in terminal]


def test_every_flag_of_the_commands_is_one() -> None:
    of_page = {
        "--host",
        "--port",
        "--share",
        "--no-browser",
        "--home",
        "--demo",
        "--json",
        "--eval",
    }
    of_jobs = {f"--{name.replace('_', '-')}" for name in JobSpec.model_fields}
    assert set(re.findall(r"--[a-z][a-z-]+", section("From a terminal"))) <= of_page | of_jobs


def test_the_run_folder_is_as_its_room_tells_it() -> None:
    listing = [line for line in (runs.__doc__ or "").splitlines() if line.startswith("    ")]
    assert listing and LINES.issuperset(listing)


# What it trains


def trains(method: Method) -> str:
    """The words for what trains."""
    own_weights = "the last layers" if method.trains_last_layers else "every weight"
    return "a low-rank adapter" if method.trains_adapter else own_weights


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.id)
def test_every_method_stands_in_the_table_with_its_bits(method: Method) -> None:
    assert f"| `{method.id}` | {trains(method)} | {method.base_bits} bits |" in LINES


def test_every_stage_stands_in_the_table_with_what_it_learns_and_from_what() -> None:
    for stage in STAGES.values():
        assert (
            f"| **{stage.id}** | {stage.title} | {stage.help} | {', '.join(stage.dataset_types)} |"
            in LINES
        )


def test_every_line_of_the_stage_table_stands_in_it() -> None:
    assert f"`python -m {stage_table.__name__}`" in README
    assert LINES.issuperset([*stage_table.stages_by_methods(), *stage_table.settings_by_axis()])


def test_every_way_of_writing_rows_stands_in_the_table_with_its_stages() -> None:
    for kind in ROW_FORMATS:
        columns = " + ".join(f"`{column}`" for column in kind.columns)
        assert (
            f"| {kind.id} | {columns} | {', '.join(stage for stage in STAGES if accepts(stage, kind))} |"
            in LINES
        )


def test_every_optimizer_and_every_reward_is_named() -> None:
    names = get_args(OptimizerName)
    assert all(f"`{name}`" in README for name in (*names, *REWARD_FUNCTIONS))
    assert names[-4:] == tuple(EXTRA_OPTIMIZERS), "the last four need a package"


def test_the_menus_are_as_long_as_they_say() -> None:
    assert f"{len(models())} models are in the menu" in README
    assert f"{len(gpus())} cards are in the menu" in README


# What was computed


def test_the_planned_table_is_what_the_planner_chooses() -> None:
    assert LINES.issuperset(printed("python benchmarks/plans.py"))


@pytest.mark.slow
def test_the_largest_batches_are_those_of_the_estimate() -> None:
    rows = [line for line in section("What fits where").splitlines() if line.startswith("|")]
    assert len(rows) > 12 and set(rows) <= set(printed("python benchmarks/what_fits.py"))


@pytest.mark.slow
def test_the_accuracy_record_is_that_of_the_published_measurements() -> None:
    _head, *groups = printed("python benchmarks/memory_accuracy.py")
    rows = [f"| {' | '.join(re.split(r' {2,}', group.strip()))} |" for group in groups]
    assert rows and LINES.issuperset(rows)


def test_as_many_configurations_are_traced_as_it_says() -> None:
    number = len(list(cases()))
    assert f"{number} of {number} configurations" in README
