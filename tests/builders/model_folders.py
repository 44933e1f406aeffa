"""Copies of the demo model with changes to their files."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.builders.paths import DEMO

DEMO_MODEL = DEMO / "model"


def copy_of_demo(folder: Path) -> Path:
    """Copy the demo model to a folder."""
    shutil.copytree(DEMO_MODEL, folder)
    return folder


def change_config(folder: Path, **changes: object) -> None:
    """Change keys of config.json; None removes one."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: each for key, each in config.items() if each is not None}))


def rewrite(
    folder: Path,
    change: Callable[[str, Any], Any] = lambda name, tensor: tensor,
    *,
    keep: Callable[[str], bool] = lambda name: True,
    rename: Callable[[str], str] = lambda name: name,
) -> None:
    """Write the weights again, with some tensors changed, left out or renamed."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = {
        rename(name): change(name, tensor).contiguous()
        for name, tensor in load_file(path).items()
        if keep(name)
    }
    save_file(tensors, path, metadata={"format": "pt"})
