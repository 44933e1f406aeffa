"""Test that a stage is one record and one builder: no other file of core names a stage."""

import ast
from collections.abc import Iterator

import pytest

from core.training.contract.stages import STAGES
from tests.builders.paths import ROOT

RECORDS = "core/training/contract/stages.py"
BUILDERS = "core/training/trainers/builders.py"
COLUMNS = {"core/training/contract/row_reader.py": {"reward"}}
"""File -> names of columns in it that are also ids of stages."""


def named_stages(source: str) -> Iterator[str]:
    """Yield the ids of stages that a file holds as text, those that are default values left out."""
    tree = ast.parse(source)
    defaults = {id(node) for node in _default_values(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in STAGES and id(node) not in defaults:
            yield str(node.value)


def _default_values(tree: ast.Module) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            yield from (*node.args.defaults, *filter(None, node.args.kw_defaults))
        elif isinstance(node, ast.AnnAssign) and node.value:
            yield node.value
            if isinstance(node.value, ast.Call):  # Field("sft", ...)
                yield from node.value.args
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".get"):
            yield from node.args[1:]


def test_two_files_of_core_name_a_stage() -> None:
    files = sorted((ROOT / "core").rglob("*.py"))
    naming = []
    for path in files:
        name = path.relative_to(ROOT).as_posix()
        if set(named_stages(path.read_text(encoding="utf-8"))) - COLUMNS.get(name, set()):
            naming.append(name)
    assert naming == [RECORDS, BUILDERS]


def test_every_trainable_stage_has_one_builder() -> None:
    named = named_stages((ROOT / BUILDERS).read_text(encoding="utf-8"))
    assert sorted(named) == sorted(stage.id for stage in STAGES.values() if stage.is_trainable)


@pytest.mark.parametrize("source", ['if stage == "kto": pass', 'TABLE = {"dpo": 1}', '("sft",)'])
def test_a_stage_in_the_code_is_found(source: str) -> None:
    assert list(named_stages(source))


@pytest.mark.parametrize(
    "source", ['def f(stage: str = "sft"): ...', 'stage: str = "sft"', 'fields.get("stage", "sft")']
)
def test_a_default_value_is_not_counted(source: str) -> None:
    assert not list(named_stages(source))
