"""README and documents as text, for the tests that hold them true."""

import re
from pathlib import Path

from tests.builders.paths import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = {
    path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))
}
ALL_TEXT = "\n".join([README, *DOCUMENTS.values()])
ALL_LINES = frozenset(ALL_TEXT.splitlines())


def section(text: str, heading: str) -> str:
    """Return the text below a heading of the second level."""
    return text.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def table_rows(text: str) -> list[str]:
    """Return the rows of all tables, without their heads."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    rules = {index for index, line in enumerate(rows) if re.fullmatch(r"[|\s:-]+", line)}
    heads = {index - 1 for index in rules}
    return [row for index, row in enumerate(rows) if index not in rules | heads]


def defines(path: Path, name: str) -> bool:
    """Return whether a module gives a meaning to a name."""
    source = path.read_text(encoding="utf-8")
    return re.search(rf"^(class )?{name}\b.*[=:(]", source, re.MULTILINE) is not None
