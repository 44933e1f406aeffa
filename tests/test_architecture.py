"""Hold the house in shape: who imports whom, how large things may be, what may never be called.

Each rule is a function that returns the places which break it, so that one test says all of them at once.
"""

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

from tests.builders.paths import ROOT

HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "bitsandbytes", "accelerate"}
FLOORS = (
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
"""Rooms of core, lowest first. A room imports lower rooms only, never its neighbours."""
TRAINING_FLOORS = (
    {"contract"},
    {"record", "data", "checkpoints"},
    {"model"},
    {"loop"},
    {"trainers"},
    {"__main__"},
)
"""Rooms of the training program, lowest first."""
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 40
MAX_STORY_LINES = 80
STORIES = {"build", "_wire", "main", "train"}
"""Page layout and the main story of the training program may take more lines than other functions."""
MAX_POSITIONAL = 5
MAX_EXPORTS = 15
MAX_COLUMNS = 100
FORBIDDEN_NAMES = {"utils", "helpers", "common", "manager", "engine", "misc"}
FORBIDDEN_CALLS = {
    "os.system",
    "os.popen",
    "eval",
    "exec",
    "pickle.load",
    "pickle.loads",
    "torch.load",
}


class Project:
    """The source files of a project folder. Tests build small ones to prove that each rule can fail."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def files(self, *folders: str) -> list[Path]:
        """Return the Python files below these folders, or the files of that name."""
        found: list[Path] = []
        for folder in folders:
            place = self.root / folder
            found += [place] if place.is_file() else sorted(place.rglob("*.py"))
        return found

    @property
    def code(self) -> list[Path]:
        """Return all files but tests."""
        return self.files("app.py", "core", "ui", "benchmarks")

    def name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def module(self, path: Path) -> str:
        """Return core.memory.step for core/memory/step.py."""
        parts = path.relative_to(self.root).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def imports(self, path: Path) -> list[str]:
        """Return every imported name in full, such as core.job.JobSpec; relative ones made absolute."""
        return [name for name, _line in _imports(self.root, path)]

    def exports(self, package: str) -> list[str]:
        """Return the names in `__all__` of a package, () if it is none."""
        init = self.root.joinpath(*package.split(".")) / "__init__.py"
        return _exports(init) if init.is_file() else []

    def is_package(self, module: str) -> bool:
        return (self.root.joinpath(*module.split(".")) / "__init__.py").is_file()

    def is_module(self, module: str) -> bool:
        place = self.root.joinpath(*module.split("."))
        return place.with_suffix(".py").is_file() or self.is_package(module)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@cache
def _imports(root: Path, path: Path) -> list[tuple[str, int]]:
    package = path.relative_to(root).parent.parts
    found: list[tuple[str, int]] = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            parts = [*base, *([node.module] if node.module else [])]
            found += [(".".join([*parts, alias.name]), node.lineno) for alias in node.names]
    return found


@cache
def _exports(init: Path) -> list[str]:
    for node in tree(init).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return []


PROJECT = Project(ROOT)


# Rules. Each returns the places that break it.


def heavy_imports_outside_training_and_workers(project: Project) -> Iterator[str]:
    for path in project.files("app.py", "core", "ui"):
        if not project.name(path).startswith(("core/training/", "core/workers/")):
            heavy = HEAVY & {module.split(".")[0] for module in project.imports(path)}
            yield from (f"{project.name(path)} imports {name}" for name in sorted(heavy))


def gradio_outside_the_page(project: Project) -> Iterator[str]:
    page = [path for path in project.files("ui") if "ui/terminal/" not in project.name(path)]
    for path in set(project.code) - set(page):
        for module in project.imports(path):
            if module.split(".")[0] in ("gradio", "gradio_client"):
                yield f"{project.name(path)} imports {module}"


def imports_of_the_project_by_training(project: Project) -> Iterator[str]:
    for path in project.files("core/training"):
        for module in project.imports(path):
            is_ours = module.split(".")[0] in ("app", "ui", "core", "presets", "tests")
            if is_ours and not module.startswith("core.training"):
                yield f"{project.name(path)} imports {module}"


def imports_of_training_beyond_its_contract(project: Project) -> Iterator[str]:
    for path in project.files("app.py", "core", "ui"):
        if project.name(path).startswith(("core/training/", "core/workers/")):
            continue
        for module in project.imports(path):
            is_contract = f"{module}.".startswith("core.training.contract.")
            if module.startswith("core.training") and not is_contract:
                yield f"{project.name(path)} imports {module}"


def imports_of_workers(project: Project) -> Iterator[str]:
    for path in project.code:
        own = project.module(path).split(".")[:3]
        for module in project.imports(path):
            if not module.startswith("core.workers"):
                continue
            is_shared = module.startswith(("core.workers.child", "core.workers.hub"))
            is_own = module.split(".")[:3] == own
            if own[:2] != ["core", "workers"] or not (is_own or is_shared):
                yield f"{project.name(path)} imports {module}"


def contract_beyond_the_standard_library(project: Project) -> Iterator[str]:
    for path in project.files("core/training/contract"):
        for module in project.imports(path):
            is_standard = module.split(".")[0] in sys.stdlib_module_names
            if not is_standard and not module.startswith("core.training.contract"):
                yield f"{project.name(path)} imports {module}"


def training_files_that_no_training_reaches(project: Project) -> Iterator[str]:
    training = project.root / "core" / "training"
    reached: set[Path] = set()
    waiting = [training / "__main__.py"]
    while waiting:
        path = waiting.pop()
        if path not in reached:
            reached.add(path)
            waiting += [file for name in project.imports(path) for file in executed(project, name)]
    yield from (
        project.name(path) for path in project.files("core/training") if path not in reached
    )


def executed(project: Project, imported: str) -> Iterator[Path]:
    """Yield the files that importing a name such as core.training.data.rows.Rows executes."""
    parts = imported.split(".")
    for end in range(1, len(parts) + 1):
        place = project.root.joinpath(*parts[:end])
        candidates = (place / "__init__.py", place.with_suffix(".py"))
        yield from (file for file in candidates if file.is_file())


def arrows_that_do_not_go_down(project: Project) -> Iterator[str]:
    core = floors(FLOORS)
    training = floors(TRAINING_FLOORS)
    for path in project.files("core"):
        module = project.module(path)
        for imported in project.imports(path):
            pair = module.split("."), imported.split(".")
            if pair[0][1:2] == ["training"] and imported.startswith("core.training."):
                yield from wrong_arrow(training, *(name[2:3] for name in pair), path, imported)
            elif pair[0][1:2] != ["workers"] and imported.startswith("core."):
                yield from wrong_arrow(core, *(name[1:2] for name in pair), path, imported)
            elif imported.split(".")[0] in ("ui", "app", "tests", "benchmarks"):
                yield f"{module} imports {imported}"


def floors(rooms: Iterable[set[str]]) -> Mapping[str, int]:
    return {name: floor for floor, names in enumerate(rooms) for name in names}


def wrong_arrow(
    level: Mapping[str, int], room: list[str], other: list[str], path: Path, imported: str
) -> Iterator[str]:
    """Yield an import that goes up or sideways between two rooms."""
    if not room or not other or room == other:
        return
    if room[0] not in level or other[0] not in level:
        yield f"{path}: a room without a floor: {room[0]} or {other[0]}"
    elif level[other[0]] >= level[room[0]]:
        yield f"{path} imports {imported}, which is not below it"


def rooms_without_a_floor(project: Project) -> Iterator[str]:
    core = project.root / "core"
    rooms = {path.stem for path in core.iterdir() if path.name[0] not in "._"}
    yield from sorted(rooms - {"workers"} - set(floors(FLOORS)))


def circles(project: Project) -> Iterator[str]:
    """Yield circles of imports between files, those for types only included."""
    modules = {project.module(path): path for path in project.code}
    arrows = {module: _targets(project, path, modules) for module, path in modules.items()}
    done: set[str] = set()
    for start in sorted(modules):
        yield from _circles_from(start, arrows, [], done)


def _targets(project: Project, path: Path, modules: Mapping[str, Path]) -> set[str]:
    """Return the modules of the project that a file imports; a door that it stands behind does not count."""
    own = project.module(path)
    found: set[str] = set()
    for name in project.imports(path):
        parent = name.rpartition(".")[0]
        target = name if name in modules else parent
        if target in modules and target != own and not own.startswith(f"{target}."):
            found.add(target)
    return found


def _circles_from(
    module: str, arrows: Mapping[str, set[str]], way: list[str], done: set[str]
) -> Iterator[str]:
    if module in way:
        yield " -> ".join([*way[way.index(module) :], module])
    elif module not in done:
        for target in sorted(arrows[module]):
            yield from _circles_from(target, arrows, [*way, module], done)
        done.add(module)


def imports_past_a_door(project: Project) -> Iterator[str]:
    """Yield imports of names that a package does not export, made from outside it."""
    for path in project.code:
        module = project.module(path)
        for imported in project.imports(path):
            if imported.split(".")[0] not in ("core", "ui"):
                continue
            if closed := closed_door(project, module, imported):
                yield f"{project.name(path)} imports {imported}, which {closed} does not export"


def closed_door(project: Project, importer: str, imported: str) -> str:
    """Return the first package on the way to a name that does not export the next step, "" if all do.

    A package that the importer itself stands in is open to it. Folders of rooms (core, ui, core.training,
    core.workers) are no rooms: they export nothing and close nothing.
    """
    parts = imported.split(".")
    for end in range(1, len(parts)):
        package = ".".join(parts[:end])
        is_room = project.is_package(package) and package not in FOLDERS_OF_ROOMS
        is_inside = f"{importer}.".startswith(f"{package}.")
        if is_room and not is_inside and parts[end] not in project.exports(package):
            return package
    return ""


FOLDERS_OF_ROOMS = {"core", "ui", "core.training", "core.workers"}


def doors_that_export_too_much(project: Project) -> Iterator[str]:
    for path in project.code:
        if path.name == "__init__.py":
            number = len(_exports(path))
            if number > MAX_EXPORTS:
                yield f"{project.name(path)} exports {number} names"


def private_imports(project: Project) -> Iterator[str]:
    for path in [*project.code, *project.files("tests")]:
        for imported in project.imports(path):
            is_ours = imported.split(".")[0] in ("core", "ui", "benchmarks", "tests")
            last = imported.rpartition(".")[2]
            if is_ours and last.startswith("_") and not last.startswith("__"):
                yield f"{project.name(path)} imports {imported}"


def class_names_with_two_meanings(project: Project) -> Iterator[str]:
    places: dict[str, list[str]] = defaultdict(list)
    for path in project.files("core", "ui"):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(project.name(path))
    yield from (f"{name}: {', '.join(where)}" for name, where in places.items() if len(where) > 1)


def untyped_jobs(project: Project) -> Iterator[str]:
    for path in project.files("core/training", "core/workers"):
        for node in ast.walk(tree(path)):
            is_job = isinstance(node, ast.arg) and node.arg == "job" and node.annotation
            if is_job and ast.unparse(node.annotation) == "Any":
                yield f"{project.name(path)}:{node.lineno}"


def long_files(project: Project) -> Iterator[str]:
    for path in project.code:
        number = path.read_text(encoding="utf-8").count("\n")
        if number > MAX_FILE_LINES:
            yield f"{project.name(path)} has {number} lines"


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def long_functions(project: Project) -> Iterator[str]:
    for path in project.code:
        for function in functions(path):
            number = (function.end_lineno or 0) - function.lineno + 1
            limit = MAX_STORY_LINES if function.name in STORIES else MAX_FUNCTION_LINES
            if number > limit:
                yield f"{project.name(path)}:{function.lineno} {function.name} has {number} lines"


def functions_with_many_positional_parameters(project: Project) -> Iterator[str]:
    for path in project.code:
        for function in functions(path):
            names = [arg.arg for arg in function.args.args if arg.arg not in ("self", "cls")]
            if len(names) > MAX_POSITIONAL:
                yield f"{project.name(path)}:{function.lineno} {function.name}"


def wide_lines(project: Project) -> Iterator[str]:
    for path in [*project.code, *project.files("tests", "presets")]:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if len(line) > MAX_COLUMNS:
                yield f"{project.name(path)}:{number}"


def statements_with_two_conditional_expressions(project: Project) -> Iterator[str]:
    for path in project.code:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.stmt) and _num_conditionals(node) > 1:
                yield f"{project.name(path)}:{node.lineno}"


def _num_conditionals(node: ast.AST) -> int:
    """Count the conditional expressions of a statement, those of statements inside it left out."""
    number = 0
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.stmt):
            number += isinstance(child, ast.IfExp) + _num_conditionals(child)
    return number


def modules_without_a_docstring(project: Project) -> Iterator[str]:
    for path in project.code:
        if path.read_text(encoding="utf-8") and not ast.get_docstring(tree(path)):
            yield project.name(path)


OPENING = re.compile(r"(a|an|the|what|which|who|whose|when|where|why|how|whether|whatever)\b", re.I)


def docstrings_that_open_with_an_article(project: Project) -> Iterator[str]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for path in project.files("app.py", "core", "ui"):
        for node in ast.walk(tree(path)):
            if not isinstance(node, kinds) or getattr(node, "name", "").startswith("_"):
                continue
            text = ast.get_docstring(node)
            if text and OPENING.match(text):
                line = text.splitlines()[0]
                yield f"{project.name(path)}:{getattr(node, 'lineno', 1)}: {line}"


def dangerous_calls(project: Project) -> Iterator[str]:
    """Yield shells, unpickling and trust in code that comes with a model."""
    for path in project.code:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and _is_dangerous(node):
                yield f"{project.name(path)}:{node.lineno} {ast.unparse(node.func)}"


def _is_dangerous(call: ast.Call) -> bool:
    called = ast.unparse(call.func)
    values = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    trusts = any(values.get(name, "False") != "False" for name in ("shell", "trust_remote_code"))
    forgets = called.endswith(".from_pretrained") and "trust_remote_code" not in values
    return called in FORBIDDEN_CALLS or trusts or forgets


def rooms_with_a_name_that_says_nothing(project: Project) -> Iterator[str]:
    for path in project.code:
        if FORBIDDEN_NAMES & set(path.stem.split("_")):
            yield project.name(path)


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
    modules_without_a_docstring,
    dangerous_calls,
    rooms_with_a_name_that_says_nothing,
)


NOT_YET = {
    arrows_that_do_not_go_down,
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
}
"""Rules that the rooms are being brought to; every room that is done obeys all of them."""


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule not in NOT_YET])
def test_no_file_breaks_the_rule(rule) -> None:
    assert list(rule(PROJECT)) == []


MAX_SHARE_OF_ARTICLES = 0.1
MAX_ROOMS, MAX_FLOORS = 12, 8


@pytest.mark.skip(reason="rooms are being rewritten")
def test_few_docstrings_open_with_an_article() -> None:
    number = sum(
        ast.get_docstring(node) is not None
        for path in PROJECT.files("app.py", "core", "ui")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    )
    found = list(docstrings_that_open_with_an_article(PROJECT))
    assert len(found) < MAX_SHARE_OF_ARTICLES * number


def test_core_has_few_rooms() -> None:
    rooms = [path for path in (ROOT / "core").iterdir() if path.name[0] not in "._"]
    assert len(rooms) <= MAX_ROOMS


def test_core_has_few_floors() -> None:
    assert len(FLOORS) - 1 <= MAX_FLOORS  # the training program stands apart


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
    "arrows_that_do_not_go_down": {"core/memory/a.py": "from core.speed import forecast"},
    "rooms_without_a_floor": {"core/attic/a.py": ""},
    "circles": {"core/job/a.py": "from core.job import b", "core/job/b.py": "import core.job.a"},
    "imports_past_a_door": {
        "core/job/__init__.py": DOOR,
        "core/job/spec.py": "class Spec: ...",
        "core/models/a.py": "from core.job.spec import Spec",
    },
    "doors_that_export_too_much": {
        "core/job/__init__.py": f"__all__ = {[f'name_{number}' for number in range(16)]}"
    },
    "private_imports": {"core/job/a.py": "from core.job.b import _hidden"},
    "class_names_with_two_meanings": {
        "core/job/a.py": "class Case: ...",
        "ui/a.py": "class Case: ...",
    },
    "untyped_jobs": {"core/training/a.py": "def load(job: Any): ..."},
    "long_files": {"core/job/a.py": "\n" * 401},
    "long_functions": {"core/job/a.py": "def long():\n" + "    pass\n" * 41},
    "functions_with_many_positional_parameters": {"core/job/a.py": "def f(a, b, c, d, e, f): ..."},
    "wide_lines": {"core/job/a.py": f"# {'x' * 100}"},
    "statements_with_two_conditional_expressions": {
        "core/job/a.py": "x = (1 if a else 2) + (3 if b else 4)"
    },
    "modules_without_a_docstring": {"core/job/a.py": "x = 1"},
    "dangerous_calls": {"core/job/a.py": "subprocess.run(command, shell=True)"},
    "rooms_with_a_name_that_says_nothing": {"core/job/utils.py": ""},
}
"""Rule -> files of a small project that break it."""


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_rule_finds_what_breaks_it(rule, tmp_path: Path) -> None:
    for name, text in {"app.py": "", **BROKEN[rule.__name__]}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert list(rule(Project(tmp_path)))
