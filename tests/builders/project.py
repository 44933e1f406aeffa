"""Source files of the project: their imports and exports, for the rules of the house."""

import ast
from functools import cache
from pathlib import Path


class Project:
    """Source files of a project folder. Tests build small ones to prove that each rule can fail."""

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
        return self.files("app.py", "core", "ui", "benchmarks", "presets")

    @property
    def code_and_tests(self) -> list[Path]:
        return [*self.code, *self.files("tests")]

    def name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def module(self, path: Path) -> str:
        """Return core.memory.step for core/memory/step.py."""
        parts = path.relative_to(self.root).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def imports(self, path: Path) -> list[str]:
        """Return every imported name in full, such as core.job.JobSpec."""
        return _imports(self.root, path)

    def attributes_of_imports(self, path: Path) -> list[str]:
        """Return `stages._SFT` where a file reads an attribute of a module of the project."""
        modules = {name.rpartition(".")[2] for name in self.imports(path) if self.is_module(name)}
        return [
            f"{node.value.id}.{node.attr}"
            for node in ast.walk(tree(path))
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in modules
        ]

    def exports(self, package: str) -> list[str]:
        """Return the names in `__all__` of a package, none if there is no such package."""
        init = self.root.joinpath(*package.split(".")) / "__init__.py"
        return exports_of(init) if init.is_file() else []

    def is_package(self, module: str) -> bool:
        return (self.root.joinpath(*module.split(".")) / "__init__.py").is_file()

    def is_module(self, module: str) -> bool:
        place = self.root.joinpath(*module.split("."))
        return place.with_suffix(".py").is_file() or self.is_package(module)


@cache
def tree(path: Path) -> ast.Module:
    """Return the syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@cache
def _imports(root: Path, path: Path) -> list[str]:
    package = path.relative_to(root).parent.parts
    found: list[str] = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts: list[str] = []
            if node.level:  # a relative import
                parts += package[: len(package) - node.level + 1]
            if node.module:
                parts.append(node.module)
            found += [".".join([*parts, alias.name]) for alias in node.names]
    return found


@cache
def exports_of(init: Path) -> list[str]:
    """Return the names in `__all__` of a file, none if it has no `__all__`."""
    for node in tree(init).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if target is not None and ast.unparse(target) == "__all__":
            return list(ast.literal_eval(node.value))
    return []
