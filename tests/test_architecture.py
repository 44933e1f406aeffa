"""Test the rules of the house: who imports whom, how large things may be, what is never called."""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.builders.import_rules import (
    FLOORS,
    HEAVY,
    MAX_EXPORTS,
    arrows_that_do_not_go_down,
    circles,
    contract_beyond_the_standard_library,
    doors_that_export_too_much,
    gradio_outside_the_page,
    heavy_imports_outside_training_and_workers,
    imports_of_the_project_by_training,
    imports_of_training_beyond_its_contract,
    imports_of_workers,
    imports_past_a_door,
    models_in_the_simulator,
    private_imports,
    rooms_without_a_floor,
    training_files_that_no_training_reaches,
)
from tests.builders.paths import ROOT
from tests.builders.project import Project, tree
from tests.builders.style_rules import (
    MAX_COLUMNS,
    MAX_FILE_LINES,
    MAX_FUNCTION_LINES,
    MAX_TEST_NAME,
    asserts_with_two_claims,
    class_names_with_two_meanings,
    dangerous_calls,
    docstrings_that_open_with_an_article,
    f_strings_that_compute,
    functions_with_many_positional_parameters,
    imports_of_tests_by_tests,
    lines_with_old_words,
    long_files,
    long_functions,
    long_test_names,
    modules_without_a_docstring,
    rooms_with_a_name_that_says_nothing,
    statements_with_two_conditional_expressions,
    untyped_jobs,
    wide_lines,
)

Rule = Callable[[Project], Iterator[str]]
"""Function that yields the places of a project that break a rule."""
PROJECT = Project(ROOT)
RULES = (
    heavy_imports_outside_training_and_workers,
    gradio_outside_the_page,
    imports_of_the_project_by_training,
    imports_of_training_beyond_its_contract,
    imports_of_workers,
    contract_beyond_the_standard_library,
    training_files_that_no_training_reaches,
    arrows_that_do_not_go_down,
    rooms_without_a_floor,
    models_in_the_simulator,
    circles,
    imports_past_a_door,
    doors_that_export_too_much,
    private_imports,
    class_names_with_two_meanings,
    untyped_jobs,
    long_files,
    long_functions,
    functions_with_many_positional_parameters,
    wide_lines,
    statements_with_two_conditional_expressions,
    f_strings_that_compute,
    modules_without_a_docstring,
    lines_with_old_words,
    dangerous_calls,
    rooms_with_a_name_that_says_nothing,
    asserts_with_two_claims,
    long_test_names,
    imports_of_tests_by_tests,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_no_file_breaks_the_rule(rule: Rule) -> None:
    assert list(rule(PROJECT)) == []


MAX_SHARE_OF_ARTICLES = 0.1
MAX_ROOMS, MAX_FLOORS = 12, 8


def test_few_docstrings_open_with_an_article() -> None:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    number = 0
    for path in PROJECT.code:
        for node in ast.walk(tree(path)):
            number += isinstance(node, kinds) and ast.get_docstring(node) is not None
    found = list(docstrings_that_open_with_an_article(PROJECT))
    assert len(found) < MAX_SHARE_OF_ARTICLES * number


def test_core_has_few_rooms() -> None:
    rooms = list((ROOT / "core").glob("*/__init__.py"))
    assert len(rooms) <= MAX_ROOMS


def test_core_has_few_floors() -> None:
    """Leave out the floor of the training program, of which core uses only the contract."""
    assert len(FLOORS) - 1 <= MAX_FLOORS


def test_the_page_comes_up_without_torch() -> None:
    heavy = ", ".join(repr(name) for name in sorted(HEAVY))
    start = "import sys, app; from ui.quick_import import import_gradio; import_gradio()"
    script = f"{start}; import ui.server; print([n for n in ({heavy}) if n in sys.modules])"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Each rule finds what breaks it.

DOOR = '"""Door."""\n\n__all__ = ["Spec"]\n'
BROKEN: Mapping[str, Mapping[str, str]] = {
    "heavy_imports_outside_training_and_workers": {"core/job/a.py": "import torch"},
    "gradio_outside_the_page": {"ui/terminal/a.py": "import gradio as gr"},
    "imports_of_the_project_by_training": {"core/training/a.py": "from core.job import Spec"},
    "imports_of_training_beyond_its_contract": {
        "core/job/a.py": "from core.training.model import load"
    },
    "imports_of_workers": {"core/job/a.py": "from core.workers.trace import step"},
    "contract_beyond_the_standard_library": {"core/training/contract/a.py": "import psutil"},
    "training_files_that_no_training_reaches": {
        "core/training/__main__.py": "from .data import rows",
        "core/training/data/__init__.py": "",
        "core/training/data/rows.py": "",
        "core/training/data/lost.py": "",
    },
    "arrows_that_do_not_go_down": {"core/speed/a.py": "from core.memory import estimate"},
    "rooms_without_a_floor": {"core/attic/a.py": ""},
    "models_in_the_simulator": {"core/memory/simulator/a.py": "from core.models import ModelShape"},
    "circles": {"core/job/a.py": "from core.job import b", "core/job/b.py": "import core.job.a"},
    "imports_past_a_door": {
        "core/job/__init__.py": DOOR,
        "core/job/spec.py": "class Spec: ...",
        "core/models/a.py": "from core.job.spec import Spec",
    },
    "doors_that_export_too_much": {
        "core/job/__init__.py": "__all__ = " + repr(["name"] * (MAX_EXPORTS + 1))
    },
    "private_imports": {"core/job/a.py": "from core.job.b import _hidden"},
    "class_names_with_two_meanings": {
        "core/job/a.py": "class Case: ...",
        "ui/a.py": "class Case: ...",
    },
    "untyped_jobs": {"core/training/a.py": "def load(job: Any): ..."},
    "long_files": {"core/job/a.py": "\n" * (MAX_FILE_LINES + 1)},
    "long_functions": {"core/job/a.py": "def long():\n" + "    pass\n" * MAX_FUNCTION_LINES},
    "functions_with_many_positional_parameters": {"core/job/a.py": "def f(a, b, c, d, e, f): ..."},
    "wide_lines": {"core/job/a.py": "#" * (MAX_COLUMNS + 1)},
    "statements_with_two_conditional_expressions": {
        "core/job/a.py": "x = (1 if a else 2) + (3 if b else 4)"
    },
    "f_strings_that_compute": {"core/job/a.py": "x = f'{1 if a else 2}'"},
    "modules_without_a_docstring": {"core/job/a.py": "x = 1"},
    "docstrings_that_open_with_an_article": {"core/job/a.py": '"""The job."""'},
    "lines_with_old_words": {"core/job/a.py": "# whatever it comes to"},
    "dangerous_calls": {"core/job/a.py": "subprocess.run(command, shell=True)"},
    "rooms_with_a_name_that_says_nothing": {"core/job/utils.py": ""},
    "asserts_with_two_claims": {"tests/test_a.py": "assert a and b"},
    "long_test_names": {"tests/test_a.py": f"def test_{'a' * MAX_TEST_NAME}(): ..."},
    "imports_of_tests_by_tests": {"tests/test_a.py": "from tests.test_b import make"},
}
"""Rule -> files of a small project that break it."""


@pytest.mark.parametrize(
    "rule", [*RULES, docstrings_that_open_with_an_article], ids=lambda rule: rule.__name__
)
def test_the_rule_finds_what_breaks_it(rule: Rule, tmp_path: Path) -> None:
    for name, text in {"app.py": "", **BROKEN[rule.__name__]}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert list(rule(Project(tmp_path)))
