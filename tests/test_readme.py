"""The README tells the truth: its tables and counts are those of the code."""

import re
from pathlib import Path

from core.dataset import DATASET_TYPES
from core.methods import METHODS, STAGES
from core.presets import gpus, models

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_room_of_the_house_has_a_line() -> None:
    listed = set(re.findall(r"^    ([\w./-]+) +\S", README, re.MULTILINE))
    rooms = [*(ROOT / "core").iterdir(), *(ROOT / "ui").iterdir(), *(ROOT / "presets").iterdir(), ROOT / "app.py"]
    named = {f"{path.relative_to(ROOT)}{'/' if path.is_dir() else ''}" for path in rooms if path.name[0] not in "._"}
    assert named <= listed


def test_every_line_of_the_house_is_a_room() -> None:
    house = README[README.index("## The house") :]
    listed = re.findall(r"^    ([\w./-]+) +\S", house, re.MULTILINE)
    assert listed and not [name for name in listed if not (ROOT / name).exists()]


def test_every_method_stands_in_the_table_with_its_bits() -> None:
    for method in METHODS.values():
        trains = "a low-rank adapter" if method.trains_adapter else "every weight"
        assert f"| `{method.id}` | {trains} | {method.base_bits} bits |" in README


def test_every_stage_and_every_way_of_writing_rows_is_named() -> None:
    assert all(f"**{stage}**" in README for stage in STAGES)
    assert all(" + ".join(f"`{column}`" for column in kind.columns) in README for kind in DATASET_TYPES)


def test_the_menus_are_as_long_as_they_say() -> None:
    assert f"{len(models())} models are in the menu" in README
    assert f"{len(gpus())} cards are in the menu" in README


def test_every_file_that_it_shows_is_there() -> None:
    assert all((ROOT / path).is_file() for path in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README))
