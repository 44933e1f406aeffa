"""Read a suite from a JSON Lines or TOML file. Names the line of everything that is wrong."""

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

from .suite import Suite, SuiteFault, SuiteTest, UnusableSuite, read_test

MAX_BYTES = 8 * 2**20
MAX_TESTS = 1000
SUFFIXES = (".jsonl", ".toml")
TABLE = re.compile(rb"^[ \t]*\[\[[ \t]*test[ \t]*\]\]", re.MULTILINE)
"""Head of a test in a TOML file."""
AT_LINE = re.compile(r"\s*\(at line (\d+), column \d+\)")
"""End of a message of tomllib."""
FORM = 'one test a line, such as {"prompt": "...", "contains": "..."}'


def read_suite(path: Path, name: str = "") -> Suite:
    """Return the suite in a file, under its own name unless another is given.

    Raises UnusableSuite, which lists what is wrong with each test, and OSError.
    """
    name = name or path.stem
    if path.suffix.lower() not in SUFFIXES:
        fix = f"name it .jsonl and write {FORM}"
        raise UnusableSuite(name, [SuiteFault(0, "file", "is no suite: it ends differently", fix)])
    with path.open("rb") as file:
        text = file.read(MAX_BYTES + 1)
    if len(text) > MAX_BYTES:
        message = f"has more than {MAX_BYTES // 2**20} MiB"
        raise UnusableSuite(name, [SuiteFault(0, "file", message, "divide it")])
    return parse_suite(text, name, is_toml=path.suffix.lower() == ".toml")


def parse_suite(text: bytes, name: str, *, is_toml: bool = False) -> Suite:
    """Return the suite in the content of a file. Raises UnusableSuite."""
    tests: list[SuiteTest] = []
    faults: list[SuiteFault] = []
    found = _toml_tests(text, name) if is_toml else _json_tests(text)
    for line, fields in found:
        if isinstance(fields, SuiteFault):
            faults.append(fields)
            continue
        test, wrong = read_test(fields, line)
        faults += wrong
        if test:
            tests.append(test)
        if len(tests) > MAX_TESTS:
            message = f"has more than {MAX_TESTS:,} tests"
            raise UnusableSuite(name, [SuiteFault(0, "file", message, "divide it")])
    if not tests and not faults:
        faults.append(SuiteFault(0, "file", "has no tests", f"write {FORM}"))
    if faults:
        raise UnusableSuite(name, faults)
    return Suite(name, tuple(tests))


def to_lines(suite: Suite) -> str:
    """Return a suite as the content of a .jsonl file."""
    lines = (json.dumps(test.fields, ensure_ascii=False) for test in suite.tests)
    return "".join(f"{line}\n" for line in lines)


def _json_tests(text: bytes) -> Iterator[tuple[int, object]]:
    """Yield (line, value of its JSON or the fault of the line)."""
    for line, written in enumerate(text.removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        if not written.strip():
            continue
        try:
            yield line, json.loads(written)
        except UnicodeDecodeError:
            yield line, SuiteFault(line, "line", "is not UTF-8", "save the file as UTF-8")
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", "it is nested too deeply")
            yield line, SuiteFault(line, "line", f"is not JSON: {reason}", f"write {FORM}")


def _toml_tests(text: bytes, name: str) -> Iterator[tuple[int, object]]:
    """Yield (line, table of a test). Raises UnusableSuite."""
    fix = 'write [[test]] and below it prompt = "..." and contains = "..."'
    try:
        whole = tomllib.loads(text.decode("utf-8-sig"))
    except UnicodeDecodeError:
        fault = SuiteFault(0, "file", "is not UTF-8", "save it as UTF-8")
        raise UnusableSuite(name, [fault]) from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        place = AT_LINE.search(str(error))
        message = AT_LINE.sub("", str(error))
        line = int(place[1]) if place else 0
        raise UnusableSuite(
            name, [SuiteFault(line, "file", f"is not TOML: {message}", fix)]
        ) from None
    tables = whole.get("test", [])
    if whole.keys() - {"test"} or not isinstance(tables, list):
        other = next(iter(whole.keys() - {"test"}), "test")
        raise UnusableSuite(name, [SuiteFault(0, other[:40], "is not a list of tests", fix)])
    lines = [text.count(b"\n", 0, head.start()) + 1 for head in TABLE.finditer(text)]
    for index, table in enumerate(tables):
        line = lines[index] if len(lines) == len(tables) else index + 1
        yield line, table
