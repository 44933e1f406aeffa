"""The set-up by make: what it says before it downloads anything."""

import runpy
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.builders.paths import ROOT

NEEDS_MAKE = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def setup_with(python: str, folder: Path) -> str:
    """Run `make setup` in a folder with a program that takes Python's place."""
    for name in ("Makefile", "requirements.txt"):
        shutil.copy(ROOT / name, folder)
    program = folder / "python"
    program.write_text(f"#!/bin/sh\n{python}\n")
    program.chmod(0o700)
    command = ["make", "setup", f"PYTHON={program}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode != 0
    return done.stdout


@NEEDS_MAKE
def test_an_older_python_is_told_at_once(tmp_path: Path) -> None:
    said = setup_with('[ "$1" = -V ] && echo "Python 3.9.1"; [ "$1" = -V ]', tmp_path)
    assert "needs Python 3.11 or newer" in said
    assert "is Python 3.9.1" in said
    assert "to download" not in said


@NEEDS_MAKE
def test_disk_and_time_are_said_first(tmp_path: Path) -> None:
    said = setup_with('[ "$1" = -c ]', tmp_path)
    assert "to download" in said
    assert "6 GB on the disk" in said
    assert "minutes" in said


def test_the_program_itself_tells_an_older_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.version_info", (3, 10, 13))
    with pytest.raises(SystemExit, match=r"needs Python 3\.11 or newer"):
        runpy.run_path(str(ROOT / "core" / "__init__.py"))


def test_missing_packages_are_said_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(SystemExit, match="pip install -r requirements"):
        runpy.run_path(str(ROOT / "core" / "__init__.py"))
