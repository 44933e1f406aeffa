"""Adapter of a run as others get it: its weights, settings, tokenizer and the licence of its base,
without a path of this machine."""

import json
import shutil
from pathlib import Path
from typing import Any

from core.after_training.export.card import base_name
from core.runs import Home, read
from core.training.contract.weights.adapters import SETTINGS, WEIGHTS
from core.workers.export.model_files import copy_licences, copy_tokenizer
from core.workers.export.task import ExportTask


def write_adapter(task: ExportTask, target: Path) -> None:
    """Write the adapter of the run into a folder. Raises OSError."""
    folder = Path(task.request.run_folder)
    run = read(Home(folder.parent.parent), folder.name)
    output = folder / "output"
    target.mkdir(exist_ok=True)
    shutil.copyfile(output / WEIGHTS, target / WEIGHTS)
    base = Path(task.request.base_folder)
    copy_tokenizer(output, base, target)
    copy_licences(base, target)
    settings: dict[str, Any] = json.loads((output / SETTINGS).read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = base_name(run)
    (target / SETTINGS).write_text(json.dumps(settings, indent=2), encoding="utf-8")
