"""Paths of files that tests read."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
DATA = ROOT / "tests" / "data"
DEMO = ROOT / "presets" / "demo"
FAKE_PROGRAM = ROOT / "tests" / "builders" / "fake_program"
