"""README: its tree, its table of places, its commands and its labels are those of the code."""

import re

from core.job import JobSpec
from core.models import gpus, models
from core.runs import Home
from tests.builders.documents import README, defines, section
from tests.builders.paths import ROOT
from ui import page
from ui.handlers import Handlers
from ui.terminal.commands import COMMANDS
from ui.terminal.usage import RUN_ACTIONS

MAX_LINES = 150
FLAGS_OF_NO_JOB = frozenset(
    [
        "--host",
        "--port",
        "--share",
        "--public-url",
        "--token",
        "--data",
        "--no-browser",
        "--home",
        "--demo",
        "--suite",
        "--at-least",
        "--measure",
        "--exact",
        "--json",
        "--eval",
        "--line",
        "--rows",
        "--map",
        "--repair",
        "--drop-bad",
        "--base",
        "--to",
        "--quant",
        "--methods",
        "--seeds",
        "--axis",
        "--estimate-only",
        "--sort",
    ]
)
"""Flags of commands that are no fields of a job."""


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= MAX_LINES


def test_every_file_that_it_links_exists() -> None:
    paths = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert "docs/page.png" in paths
    assert [path for path in paths if not (ROOT / path).is_file()] == []


def test_every_document_is_linked() -> None:
    names = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert names - set(re.findall(r"\(docs/(\w+\.md)\)", README)) == set()


# The house


def rooms_of_the_tree() -> set[str]:
    """Return the paths that the tree of the README names: `core/` and, below it, `  job/`."""
    rooms, folder = set[str](), ""
    for indent, name in re.findall(r"^ {4}( *)([\w./]+) +\S", section(README, "The house"), re.M):
        rooms.add(folder + name if indent else name)
        if not indent:
            folder = name
    return rooms


def test_every_room_has_a_line_in_the_tree() -> None:
    rooms = [ROOT / "app.py", *(ROOT / "core").iterdir(), *ROOT.iterdir()]
    folders = {"core", "ui", "presets", "benchmarks", "tests"}
    wanted = {
        path.relative_to(ROOT).as_posix() + ("/" if path.is_dir() else "")
        for path in rooms
        if path.name in folders or path.name == "app.py" or path.parent.name == "core"
    }
    wanted = {path for path in wanted if path.split("/")[-1][:1] not in {"_", "."}}
    assert wanted - rooms_of_the_tree() - {"core/__pycache__/"} == set()


def test_every_line_of_the_tree_is_a_room() -> None:
    rooms = rooms_of_the_tree()
    assert "core/memory/" in rooms
    assert [room for room in rooms if not (ROOT / room).exists()] == []


def test_every_place_to_add_something_exists() -> None:
    places = re.findall(r"`([\w/]+(?:/|\.toml|\.py))(?::(\w+))?`", section(README, "The house"))
    assert len(places) > 15
    for path, name in places:
        assert (ROOT / path).exists(), path
        assert not name or defines(ROOT / path, name), f"{path}:{name}"


# The page and the terminal


def test_it_counts_the_menus() -> None:
    assert f"{len(models())} models are in the menu" in README
    assert f"{len(gpus())} cards to plan for" in README


def test_every_button_of_its_page_section_exists(home: Home) -> None:
    texts = str(page.build(Handlers(home)).config["components"])
    labels = re.findall(r"\*\*(.+?)\*\*", section(README, "The page"), re.DOTALL)
    assert len(labels) > 8
    assert [label for label in labels if label not in texts] == []


def test_every_command_is_listed() -> None:
    terminal = section(README, "The terminal")
    missing = [command for command in COMMANDS if f"python app.py {command} " not in terminal]
    assert missing == []


def test_every_action_on_runs_is_listed() -> None:
    terminal = section(README, "The terminal")
    actions = [" ".join(("runs", name, *action.words)) for name, action in RUN_ACTIONS.items()]
    assert [action for action in actions if action not in terminal] == []


def test_every_flag_of_the_commands_exists() -> None:
    of_jobs = {f"--{name.replace('_', '-')}" for name in JobSpec.model_fields}
    flags = set(re.findall(r"--[a-z][a-z-]+", section(README, "The terminal")))
    assert flags - of_jobs - FLAGS_OF_NO_JOB == set()
