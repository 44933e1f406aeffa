"""Documents under docs/: their tables, counts, commands and paths are those of the code."""

import re
import subprocess
import sys
from typing import get_args

import pytest

from benchmarks import stage_table
from benchmarks.trace_agreement import cases
from core import runs
from core.job.rules import REWARD_FUNCTIONS
from core.runs import Home
from core.training.contract.job import EXTRA_OPTIMIZERS, OptimizerName
from core.training.contract.methods import METHODS, Method
from core.training.contract.row_formats import ROW_FORMATS, accepts
from core.training.contract.stages import STAGES
from docs import list_files
from tests.builders.documents import ALL_LINES, ALL_TEXT, DOCUMENTS, section, table_rows
from tests.builders.paths import ROOT
from ui import page
from ui.handlers import Handlers
from ui.render.run import BUNDLE_LABEL

NUM_WORDS = 25
"""Size of the glossary."""


def print_of(command: str) -> list[str]:
    """Run a command that a document names; return the lines that it prints."""
    assert f"`{command}" in ALL_TEXT
    done = subprocess.run(
        [sys.executable, *command.split()[1:]],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    return done.stdout.splitlines()


# Files


def test_every_file_has_its_line() -> None:
    assert DOCUMENTS["files"] == list_files.listing(), "run python docs/list_files.py"


def test_every_python_file_says_what_it_is() -> None:
    files = [path for folder in list_files.FOLDERS for path in (ROOT / folder).rglob("*.py")]
    assert [path for path in files if not list_files.first_sentence(path)] == []


def test_every_linked_file_exists() -> None:
    for name, text in DOCUMENTS.items():
        for path in re.findall(r"\]\((?!http)([^)#]+)\)", text):
            assert (ROOT / "docs" / path).is_file(), f"{name} links {path}"


def test_every_named_benchmark_exists() -> None:
    names = re.findall(r"benchmarks[/.](\w+)(?:\.py)?", ALL_TEXT)
    assert len(names) > 5
    assert [name for name in names if not (ROOT / "benchmarks" / f"{name}.py").is_file()] == []


def test_the_glossary_has_few_words() -> None:
    assert len(table_rows(DOCUMENTS["glossary"])) == NUM_WORDS


def test_every_file_of_the_demo_has_a_line_with_its_number_of_rows() -> None:
    demo = ROOT / "presets" / "demo"
    text = (demo / "README.md").read_text(encoding="utf-8")
    for path in demo.iterdir():
        if path.name[0] not in "._" and path.suffix != ".md":
            name = f"{path.name}/" if path.is_dir() else path.name
            assert f"| `{name}` |" in text
    for path in demo.glob("*.jsonl"):
        assert f"| `{path.name}` | {len(path.read_bytes().splitlines())} " in text


# The page


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


def test_every_label_that_they_name_is_on_the_page(home: Home) -> None:
    text = DOCUMENTS["data"] + DOCUMENTS["run_folder"] + DOCUMENTS["planner"]
    labels = {" ".join(label.split()) for label in re.findall(r"\*\*(.+?)\*\*", text, re.DOTALL)}
    assert len(labels) > 15
    assert labels - labels_of_the_page(home) == set()


def test_the_run_folder_is_listed_as_its_package_says() -> None:
    listing = [line for line in (runs.__doc__ or "").splitlines() if line.startswith("    ")]
    assert len(listing) > 10
    assert ALL_LINES.issuperset(listing)


# What it trains


def trained_weights(method: Method) -> str:
    """Return the words for the weights that a method trains."""
    if method.trains_adapter:
        return "a low-rank adapter"
    return "the last layers" if method.trains_last_layers else "every weight"


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.id)
def test_every_method_is_in_the_table(method: Method) -> None:
    row = f"| `{method.id}` | {trained_weights(method)} | {method.base_bits} bits |"
    assert row in ALL_LINES


@pytest.mark.parametrize("stage", STAGES.values(), ids=lambda stage: stage.id)
def test_every_stage_is_in_the_table(stage) -> None:
    types = ", ".join(stage.dataset_types)
    assert f"| **{stage.id}** | {stage.title} | {stage.help} | {types} |" in ALL_LINES


def test_the_stage_tables_are_those_of_the_benchmark() -> None:
    assert "`python benchmarks/stage_table.py`" in ALL_TEXT
    assert ALL_LINES.issuperset([*stage_table.stages_by_methods(), *stage_table.settings_by_axis()])


@pytest.mark.parametrize("row_format", ROW_FORMATS, ids=lambda row_format: row_format.id)
def test_every_row_format_is_in_the_table(row_format) -> None:
    columns = " + ".join(f"`{column}`" for column in row_format.columns)
    stages = ", ".join(stage for stage in STAGES if accepts(stage, row_format))
    assert f"| {row_format.id} | {columns} | {stages} |" in ALL_LINES


def test_every_optimizer_and_reward_is_named() -> None:
    names = (*get_args(OptimizerName), *REWARD_FUNCTIONS)
    assert [name for name in names if f"`{name}`" not in ALL_TEXT] == []


def test_the_last_four_optimizers_need_a_package() -> None:
    assert get_args(OptimizerName)[-4:] == tuple(EXTRA_OPTIMIZERS)


# What was computed


def test_the_table_of_plans_is_what_the_planner_chooses() -> None:
    assert ALL_LINES.issuperset(print_of("python benchmarks/plans.py"))


@pytest.mark.slow
def test_the_largest_batches_are_those_of_the_estimate() -> None:
    rows = table_rows(section(DOCUMENTS["planner"], "What fits where"))
    assert len(rows) > 11
    assert set(rows) - set(print_of("python benchmarks/what_fits.py")) == set()


@pytest.mark.slow
def test_the_table_of_errors_is_that_of_the_measurements() -> None:
    _head, *groups = print_of("python benchmarks/memory_accuracy.py")
    rows = {f"| {' | '.join(re.split(r' {2,}', group.strip()))} |" for group in groups}
    assert rows
    assert rows - ALL_LINES == set()


def test_as_many_configurations_are_traced_as_it_says() -> None:
    number = len(list(cases()))
    assert f"{number} of {number} configurations" in DOCUMENTS["accuracy"]
