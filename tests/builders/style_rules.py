"""Rules of the house for sizes, names, text and calls. Each yields the places that break it."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tests.builders.project import Project, tree

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 40
MAX_STORY_LINES = 80
STORIES = {"build", "_wire", "main", "train"}
"""Functions that lay out the page or tell the story of a program may be longer than others."""
MAX_POSITIONAL = 5
MAX_COLUMNS = 100
MAX_TEST_NAME = 70
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


def class_names_with_two_meanings(project: Project) -> Iterator[str]:
    places: dict[str, list[str]] = defaultdict(list)
    for path in project.files("core", "ui"):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(project.name(path))
    yield from (f"{name}: {', '.join(where)}" for name, where in places.items() if len(where) > 1)


def untyped_jobs(project: Project) -> Iterator[str]:
    """Yield parameters and attributes named `job` without a type, or whose type allows anything."""
    for path in project.files("core"):
        named = [
            (argument.lineno, argument.annotation)
            for function in functions(path)
            for argument in (*function.args.args, *function.args.kwonlyargs)
            if argument.arg == "job"
        ]
        named += [
            (node.lineno, node.annotation)
            for node in ast.walk(tree(path))
            if isinstance(node, ast.AnnAssign)
            and ast.unparse(node.target).rpartition(".")[2] == "job"
        ]
        for line, annotation in named:
            if annotation is None or re.search(r"\bAny\b", ast.unparse(annotation)):
                yield f"{project.name(path)}:{line}"


def long_files(project: Project) -> Iterator[str]:
    for path in project.code_and_tests:
        number = path.read_text(encoding="utf-8").count("\n")
        if number > MAX_FILE_LINES:
            yield f"{project.name(path)} has {number} lines"


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def long_functions(project: Project) -> Iterator[str]:
    for path in project.code_and_tests:
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
    for path in project.code_and_tests:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if len(line) > MAX_COLUMNS:
                yield f"{project.name(path)}:{number}"


def statements_with_two_conditional_expressions(project: Project) -> Iterator[str]:
    for path in project.code_and_tests:
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


def f_strings_that_compute(project: Project) -> Iterator[str]:
    """Yield f-strings with a comprehension or a conditional expression inside."""
    kinds = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.IfExp)
    for path in project.code_and_tests:
        for node in ast.walk(tree(path)):
            is_f_string = isinstance(node, ast.JoinedStr)
            if is_f_string and any(isinstance(part, kinds) for part in ast.walk(node)):
                yield f"{project.name(path)}:{node.lineno}"


def modules_without_a_docstring(project: Project) -> Iterator[str]:
    for path in project.code:
        if path.read_text(encoding="utf-8") and not ast.get_docstring(tree(path)):
            yield project.name(path)


OPENING = re.compile(r"(a|an|the|what|which|who|whose|when|where|why|how|whether|whatever)\b", re.I)
OLD_WORDS = re.compile(
    r"\b(whereupon|thereby|anew|aside|foretold|whatever|whoever|wherever|nobody's|meanwhile|besides"
    r"|goe?s? on|all that|comes? to)\b",
    re.I,
)


def docstrings_that_open_with_an_article(project: Project) -> Iterator[str]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for path in project.code:
        for node in ast.walk(tree(path)):
            if not isinstance(node, kinds) or getattr(node, "name", "").startswith("_"):
                continue
            text = ast.get_docstring(node)
            if text and OPENING.match(text):
                line = text.splitlines()[0]
                yield f"{project.name(path)}:{getattr(node, 'lineno', 1)}: {line}"


def lines_with_old_words(project: Project) -> Iterator[str]:
    """Yield lines with words that plain modern English does not use."""
    for path in project.files("app.py", "core", "ui", "benchmarks"):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if OLD_WORDS.search(line):
                yield f"{project.name(path)}:{number}: {line.strip()}"


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


def asserts_with_two_claims(project: Project) -> Iterator[str]:
    for path in project.files("tests"):
        for node in ast.walk(tree(path)):
            match node:
                case ast.Assert(test=ast.BoolOp(op=ast.And())):
                    yield f"{project.name(path)}:{node.lineno}"


def long_test_names(project: Project) -> Iterator[str]:
    for path in project.files("tests"):
        for function in functions(path):
            if function.name.startswith("test_") and len(function.name) > MAX_TEST_NAME:
                yield f"{project.name(path)}:{function.lineno} {function.name}"


def imports_of_tests_by_tests(project: Project) -> Iterator[str]:
    for path in project.files("tests"):
        for imported in project.imports(path):
            parts = imported.split(".")
            if parts[0] == "tests" and any(part.startswith("test_") for part in parts):
                yield f"{project.name(path)} imports {imported}"
