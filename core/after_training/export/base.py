"""Base that a run trained over: where it is, and whether it can be used as it was."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from core.after_training.export.origin import cached
from core.job import Problem, SpecError
from core.models import DEMO_DIR
from core.runs import Run
from core.training.contract.files import sha256_of
from core.training.contract.weights.files import UnusableWeights, fingerprint_of, weight_files
from core.training.contract.weights.forms import published_form


def find_base(run: Run, is_merged: bool) -> Path:
    """Return the folder of the base that a run trained over, and that its adapter is merged into if
    `is_merged`. Raises SpecError."""
    model = run.job.model
    folder = Path(model)
    if not folder.is_dir():
        folder = cached(model, run.job.revision) or folder
    if not folder.is_dir() and folder.parts[-3:] == DEMO_DIR.parts[-3:]:
        folder = DEMO_DIR  # Tailor was moved since
    try:
        weight_files(folder)
    except (UnusableWeights, OSError):
        problem = f"the base {model} is not there any more"
        fix = "put it back, or download it again with its revision"
        raise SpecError(Problem("base", problem, fix)) from None
    _require_unchanged(run, folder)
    if is_merged:
        _require_plain(run, folder)
    return folder


def _require_plain(run: Run, base: Path) -> None:
    """Raise SpecError for a base that is published in a quantized form."""
    published = published_form(json.loads((base / "config.json").read_text(encoding="utf-8")))
    if published is None:
        return
    problem = f"the base {run.job.model} is published in {published.form.title}, into which no "
    problem += "adapter can be merged"
    fix = "use the adapter over it as it is (in Python with PEFT, or --to hub --send adapter), or "
    fix += "train over the 16-bit model that it was made from and export that run"
    raise SpecError(Problem("base", problem, fix))


def _require_unchanged(run: Run, base: Path) -> None:
    """Raise SpecError if a base is not the one that the run's checkpoints name."""
    facts = _facts(run)
    found = {
        "config_sha256": sha256_of(base / "config.json"),
        "weights_fingerprint": fingerprint_of(base),
    }
    if any(facts.get(name) not in (None, value) for name, value in found.items()):
        problem = f"the base {run.job.model} has changed since the run trained over it"
        fix = "put back the files that it had then, or train again"
        raise SpecError(Problem("base", problem, fix))


def _facts(run: Run) -> Mapping[str, object]:
    """Return the facts in the run's newest checkpoint."""
    for checkpoint in reversed(run.checkpoints):
        with suppress(OSError, ValueError, RecursionError):
            manifest = json.loads((checkpoint.folder / "manifest.json").read_text("utf-8"))
            if isinstance(manifest, dict) and isinstance(manifest.get("facts"), dict):
                return manifest["facts"]
    return {}
