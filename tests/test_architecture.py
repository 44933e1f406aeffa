"""The house keeps its shape: who imports whom, how large a room may be, what may never be called."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CODE = sorted(
    [
        ROOT / "app.py",
        *(path for room in ("core", "ui", "benchmarks") for path in (ROOT / room).rglob("*.py")),
    ]
)
HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "bitsandbytes", "accelerate"}
TRAINING = ROOT / "core" / "training"
WORKERS = ROOT / "core" / "workers"

LAYERS = (
    {"training"},  # its contract only
    {"job"},
    {"models"},
    {"device"},
    {"memory", "speed", "dataset"},
    {"advise"},
    {"resolve"},
    {"runs"},
    {"wording"},
)
"""Rooms of core, lowest first: a room imports rooms of its own layer or of lower ones."""

LONG_FUNCTIONS = {"_wire", "build", "main"}
"""Page layout and the training's main story may take 100 lines instead of 60."""


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@cache
def imports(path: Path) -> tuple[str, ...]:
    """Every module that a file imports, relative imports made absolute."""
    return tuple(_imports(path))


def _imports(path: Path) -> Iterator[str]:
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            yield from (
                module if alias.name == "*" else f"{module}.{alias.name}" for alias in node.names
            )


def room(module: str) -> str:
    """core.memory.simulator.allocator -> memory"""
    return module.split(".")[1] if module.startswith("core.") else ""


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (
        node
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [path for path in CODE if "ui" not in path.parts], ids=name_of)
def test_only_the_ui_imports_gradio(path: Path) -> None:
    assert not [
        module for module in imports(path) if module.split(".")[0] in ("gradio", "gradio_client")
    ]


def test_only_training_and_workers_import_heavy_libraries() -> None:
    light = [
        path
        for path in CODE
        if not {TRAINING, WORKERS} & set(path.parents) and "benchmarks" not in path.parts
    ]
    heavy = {
        name_of(path): HEAVY & {module.split(".")[0] for module in imports(path)} for path in light
    }
    assert not {name: found for name, found in heavy.items() if found}


def test_the_training_program_imports_nothing_else_of_the_project() -> None:
    for path in sorted(TRAINING.rglob("*.py")):
        ours = [module for module in imports(path) if module.split(".")[0] in ("app", "ui", "core")]
        assert all(module.startswith("core.training") for module in ours), name_of(
            path
        )  # its own relative imports


def test_only_the_contract_of_the_training_program_is_imported_from_outside() -> None:
    for path in [path for path in CODE if not {TRAINING, WORKERS} & set(path.parents)]:
        inside = [module for module in imports(path) if module.startswith("core.training.")]
        assert all(module.startswith("core.training.contract") for module in inside), name_of(path)


def test_nobody_imports_a_worker() -> None:
    for path in [path for path in CODE if WORKERS not in path.parents]:
        assert not [module for module in imports(path) if module.startswith("core.workers")], (
            name_of(path)
        )


def test_the_contract_needs_the_standard_library_only() -> None:
    for path in sorted((TRAINING / "contract").rglob("*.py")):
        for module in imports(path):
            is_standard = module.split(".")[0] in sys.stdlib_module_names
            assert is_standard or module.startswith("core.training.contract"), (
                f"{name_of(path)} imports {module}"
            )


def test_everything_in_the_training_program_is_reached_by_it() -> None:
    reached, to_visit = set(), [TRAINING / "__main__.py"]
    while to_visit:
        path = to_visit.pop()
        if path not in reached:
            reached.add(path)
            to_visit += [file for module in imports(path) for file in files_of(module)]
    assert set(TRAINING.rglob("*.py")) - reached == set()


def files_of(module: str) -> Iterator[Path]:
    """The files that importing a name such as core.training.data.rows.Rows executes."""
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        place = ROOT.joinpath(*parts[:end])
        candidates = (place / "__init__.py", place.with_suffix(".py"))
        yield from (file for file in candidates if file.exists())


@pytest.mark.parametrize("path", sorted((ROOT / "core").rglob("*.py")), ids=name_of)
def test_core_imports_neither_the_ui_nor_a_higher_room(path: Path) -> None:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    level = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    for imported in imports(path):
        assert imported.split(".")[0] not in ("ui", "app")
        if room(imported) and room(imported) != room(module) and room(module) in level:
            assert level[room(imported)] <= level[room(module)], f"{module} imports {imported}"


def test_every_room_of_core_has_a_layer() -> None:
    rooms = {
        path.stem for path in (ROOT / "core").iterdir() if not path.name.startswith(("_", "."))
    }
    assert rooms - {"training", "workers"} <= set().union(*LAYERS)


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_files_stay_under_470_lines(path: Path) -> None:
    assert path.read_text(encoding="utf-8").count("\n") < 470


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_functions_stay_under_60_lines_and_take_few_positional_parameters(path: Path) -> None:
    for function in functions(path):
        limit = 120 if function.name in LONG_FUNCTIONS else 75
        assert function.end_lineno - function.lineno < limit, function.name
        named = [
            argument.arg for argument in function.args.args if argument.arg not in ("self", "cls")
        ]
        is_command = path.name in (
            "commands.py",
            "page.py",
        )  # called with the parsed flags, by name
        assert len(named) <= (7 if is_command else 5), function.name


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_every_module_says_what_it_owns(path: Path) -> None:
    assert ast.get_docstring(tree(path)) or path.read_text() == ""


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_nothing_runs_a_shell_or_unpickles_or_trusts_remote_code(path: Path) -> None:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in (
                "os.system",
                "os.popen",
                "eval",
                "exec",
                "pickle.load",
                "pickle.loads",
                "torch.load",
            )
            for keyword in node.keywords:
                assert not (
                    keyword.arg in ("shell", "trust_remote_code")
                    and ast.unparse(keyword.value) != "False"
                )
            if called.endswith(".from_pretrained"):
                spelled = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert spelled.get("trust_remote_code") == "False", f"{path}:{node.lineno}"


FORBIDDEN_NAMES = {"utils", "helpers", "common", "manager", "engine", "misc"}


def test_no_room_has_a_name_that_says_nothing() -> None:
    assert not [path for path in CODE if FORBIDDEN_NAMES & set(path.stem.split("_"))]


def test_the_page_comes_up_without_torch() -> None:
    heavy = ", ".join(repr(name) for name in sorted(HEAVY))
    start = "import sys, app; from ui.quick_import import import_gradio; import_gradio(); import ui.server"
    script = f"{start}; print([name for name in ({heavy}) if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
