"""Rules of the house for imports. Each yields the places that break it."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from tests.builders.project import Project, exports_of

HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "bitsandbytes", "accelerate"}
FLOORS = (
    {"training"},  # its contract only
    {"job"},
    {"models"},
    {"device", "speed"},
    {"memory", "dataset"},
    {"advise"},
    {"resolve", "wording"},
    {"runs"},
    {"after_training"},
)
"""Rooms of core, lowest first. A room imports lower rooms only, never its neighbours."""
TRAINING_FLOORS = (
    {"contract"},
    {"ranks"},
    {"record", "data", "checkpoints"},
    {"model"},
    {"loop"},
    {"trainers"},
    {"__main__"},
)
"""Rooms of the training program, lowest first."""
FOLDERS_OF_ROOMS = {"core", "ui", "core.training", "core.workers"}
"""Packages that only hold rooms, and export nothing themselves."""
MAX_EXPORTS = 15


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


SHARED_BY_WORKERS = (
    "core.workers.child",
    "core.workers.llama_server",
    "core.workers.quick_imports",
    "core.workers.trained_model",
)


def imports_of_workers(project: Project) -> Iterator[str]:
    for path in project.code:
        own = project.module(path).split(".")[:3]
        for module in project.imports(path):
            if not module.startswith("core.workers"):
                continue
            is_shared = module.startswith(SHARED_BY_WORKERS)
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
    """Yield imports of a room from one on the same floor or above it."""
    core = floors(FLOORS)
    training = floors(TRAINING_FLOORS)
    for path in project.files("core"):
        own = project.module(path).split(".")
        for imported in project.imports(path):
            other = imported.split(".")
            problem = ""
            if own[1:2] == ["training"] and other[:2] == ["core", "training"]:
                problem = wrong_arrow(training, own[2:3], other[2:3])
            elif own[1:2] != ["workers"] and other[0] == "core":
                problem = wrong_arrow(core, own[1:2], other[1:2])
            elif other[0] in ("ui", "app", "tests", "benchmarks"):
                problem = "is outside core"
            if problem:
                yield f"{project.name(path)} imports {imported}, which {problem}"


def floors(rooms: Iterable[set[str]]) -> Mapping[str, int]:
    """Return the floor of each room by name, 0 for the lowest."""
    return {name: floor for floor, names in enumerate(rooms) for name in names}


def wrong_arrow(floor: Mapping[str, int], importer: list[str], imported: list[str]) -> str:
    """Return what is wrong with an import between two rooms, "" if nothing is.

    Each room is a list of its name, or an empty list for a folder of rooms.
    """
    if not importer or not imported or importer == imported:
        return ""
    if importer[0] not in floor or imported[0] not in floor:
        return f"is without a floor, or {importer[0]} is"
    if floor[imported[0]] >= floor[importer[0]]:
        return "is not below it"
    return ""


def rooms_without_a_floor(project: Project) -> Iterator[str]:
    modules = [project.module(path).split(".") for path in project.files("core")]
    rooms = {parts[1] for parts in modules if len(parts) > 1}
    yield from sorted(rooms - {"workers"} - set(floors(FLOORS)))


def models_in_the_simulator(project: Project) -> Iterator[str]:
    """Yield imports of the simulator from elsewhere. It knows tensors, and no model or job."""
    for path in project.files("core/memory/simulator"):
        for imported in project.imports(path):
            is_own = imported.startswith(("core.memory.simulator", "core.memory.components"))
            if imported.startswith("core.") and not is_own:
                yield f"{project.name(path)} imports {imported}"


def circles(project: Project) -> Iterator[str]:
    """Yield circles of imports between files, those for types only included."""
    modules = {project.module(path): path for path in project.code}
    arrows = {module: _targets(project, path, modules) for module, path in modules.items()}
    done: set[str] = set()
    for start in sorted(modules):
        yield from _circles_from(start, arrows, [], done)


def _targets(project: Project, path: Path, modules: Mapping[str, Path]) -> set[str]:
    """Return the modules of the project that a file imports, except the packages that it is in."""
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
    """Return the first package on the path of a name that does not export its next part, or "".

    A package is open to the files in it. FOLDERS_OF_ROOMS are open to all.
    """
    parts = imported.split(".")
    for end in range(1, len(parts)):
        package = ".".join(parts[:end])
        is_room = project.is_package(package) and package not in FOLDERS_OF_ROOMS
        is_inside = f"{importer}.".startswith(f"{package}.")
        if is_room and not is_inside and parts[end] not in project.exports(package):
            return package
    return ""


def doors_that_export_too_much(project: Project) -> Iterator[str]:
    for path in project.code:
        if path.name == "__init__.py":
            number = len(exports_of(path))
            if number > MAX_EXPORTS:
                yield f"{project.name(path)} exports {number} names"


def private_imports(project: Project) -> Iterator[str]:
    for path in project.code_and_tests:
        for imported in project.imports(path):
            is_ours = imported.split(".")[0] in ("core", "ui", "benchmarks", "presets", "tests")
            if is_ours and any(map(is_private, imported.split("."))):
                yield f"{project.name(path)} imports {imported}"
        for name in project.attributes_of_imports(path):
            if is_private(name.rpartition(".")[2]):
                yield f"{project.name(path)} reads {name}"


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")
