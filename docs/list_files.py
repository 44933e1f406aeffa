"""Write docs/files.md: one line for every file, taken from the head of the file itself.

python docs/list_files.py
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("core", "ui", "presets", "benchmarks", "docs")
HEAD = """# Every file in one line

Each line is the first sentence of the file itself. `python docs/list_files.py` writes this list.
"""
COMMENTS = {".toml": r"\A# (.+)", ".js": r"\A// (.+)", ".css": r"\A/\* (.+?)(?: \*/)?$"}
"""Suffix -> first line of the comment that opens a file of this kind."""


def listing() -> str:
    """Return the text of docs/files.md."""
    sections = [HEAD, _section("", [ROOT / "app.py"])]
    for folder in FOLDERS:
        by_room: dict[Path, list[Path]] = {}
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in {".py", *COMMENTS} and first_sentence(path):
                by_room.setdefault(path.parent, []).append(path)
        sections += [
            _section(f"{room.relative_to(ROOT).as_posix()}/", by_room[room])
            for room in sorted(by_room)
        ]
    return "\n".join(sections)


def first_sentence(path: Path) -> str:
    """Return the first sentence of the docstring or comment that opens a file; "" if none does."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        text = ast.get_docstring(ast.parse(source)) or ""
    else:
        found = re.match(COMMENTS[path.suffix], source, re.MULTILINE)
        text = found[1] if found else ""
    paragraph = " ".join(text.split("\n\n")[0].split())
    sentence = re.split(r"(?<=[a-z0-9)`])\. (?=[A-Z`])", paragraph)[0]
    return sentence.rstrip(".")


def _section(room: str, paths: list[Path]) -> str:
    """Return the table of one folder, its `__init__.py` as the sentence above the table."""
    lines = [f"## {room}\n"] if room else []
    door = [path for path in paths if path.name == "__init__.py"]
    lines += [f"{first_sentence(path)}.\n" for path in door]
    others = [path for path in paths if path not in door]
    if others:
        lines += ["| file | |", "|---|---|"]
        lines += [f"| `{path.name}` | {first_sentence(path)} |" for path in others]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "files.md").write_text(listing(), encoding="utf-8")
