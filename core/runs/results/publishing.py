"""Result of a run: which step it holds, and how a checkpoint becomes the result instead.

The result that the training wrote is kept beside it, so that every choice can be undone.
"""

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from core.job import Problem, SpecError
from core.runs.edits import require_ended
from core.runs.files import read_json
from core.runs.home import Home, locked
from core.runs.run import Run, read
from core.training.contract.checkpoint_files import MANIFEST, TRAINER_STATE, bytes_in
from core.training.contract.files import sha256_of, write_json

OUTPUT, ORIGINAL = "output", "output-original"
"""Folder of the result, and of the one that the training wrote once another is published."""
UNDO = "original"
"""Word that stands for the result of the training in place of a step."""
NOT_OF_A_RESULT = re.compile(r"(optimizer|scheduler|scaler|rng_state.*)\.(pt|bin|pth)")
"""Files of a checkpoint that only continue a training."""
BESIDE_AN_ADAPTER = "generation_config.json"
"""Settings that a result has and a checkpoint of an adapter lacks: they say where answers end."""
PUBLISHED = "published_from"
"""Entry in the manifest of a result that was a checkpoint."""
CHANGES_BASE = ("pissa", "olora")
FREE_BYTES_AFTER = 64 * 2**20


@dataclass(frozen=True)
class ListedCheckpoint:
    """Checkpoint of a run with what decides whether to use it."""

    step: int
    num_bytes: int
    is_complete: bool
    value: float | None
    """Evaluation at its step; None if there was none."""
    metric: str
    """What the value is, as in BestStep."""
    is_best: bool
    is_result: bool

    def to_json(self) -> dict[str, object]:
        """Return the checkpoint as `runs show --json` prints it."""
        return asdict(self)


def checkpoints_of(run: Run) -> tuple[ListedCheckpoint, ...]:
    """Return the checkpoints of a run, the oldest first."""
    best = run.best
    values: Mapping[int, float] = {}
    curve = run.curves().get(best.metric) if best else None
    if curve is not None:
        steps = curve.steps.astype(int).tolist()
        values = dict(zip(steps, curve.values.tolist(), strict=True))
    return tuple(
        ListedCheckpoint(
            step=each.step,
            num_bytes=each.num_bytes,
            is_complete=each.is_complete,
            value=values.get(each.step),
            metric=best.metric if best else "",
            is_best=best is not None and best.step == each.step,
            is_result=run.result_step == each.step,
        )
        for each in run.checkpoints
    )


def has_original(run: Run) -> bool:
    """Return True if a checkpoint took the place of the result that the training wrote."""
    return (run.folder / ORIGINAL).is_dir()


def publish(home: Home, run_id: str, step: int) -> Run:
    """Make a checkpoint the result of a run that has ended.

    Raises RunNotFound, OSError, SpecError if it is missing or damaged or the disk too full.
    """
    run = read(home, run_id)
    require_ended(home, run_id)
    checkpoint = _find(run, step)
    _require_plain_weights(run)
    building = run.folder / ".output.new"
    shutil.rmtree(building, ignore_errors=True)
    try:
        building.mkdir()
        _require_room(checkpoint, building)
        _copy(checkpoint, building, step)
        _keep_generation_settings(run.folder, building)
        with locked(home):
            require_ended(home, run_id)
            _replace_result(run.folder, building)
            home.touch()
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return read(home, run_id)


def publish_original(home: Home, run_id: str) -> Run:
    """Put the result back that the training wrote. Raises RunNotFound, SpecError if it is there."""
    with locked(home):
        run = read(home, run_id)
        require_ended(home, run_id)
        if not has_original(run):
            problem = f"{run_id} has no other result: no checkpoint took the place of its own"
            raise SpecError(Problem("run", problem, "there is nothing to undo"))
        _remove(run.folder / OUTPUT)
        (run.folder / ORIGINAL).rename(run.folder / OUTPUT)
        home.touch()
    return read(home, run_id)


def _find(run: Run, step: int) -> Path:
    """Return the folder of a complete checkpoint. Raises SpecError."""
    complete = [each for each in run.checkpoints if each.is_complete]
    for each in complete:
        if each.step == step:
            return each.folder
    steps = ", ".join(str(each.step) for each in complete)
    fix = f"it has those of steps {steps}" if steps else "it has none"
    raise SpecError(Problem("STEP", f"{run.id} has no checkpoint of step {step}", fix))


def _require_plain_weights(run: Run) -> None:
    """Raise SpecError for a run whose checkpoints hold weights that only its training can use."""
    initial = run.job.init_lora_weights
    if run.job.trains_adapter and initial in CHANGES_BASE:
        problem = f"the checkpoints of {initial} fit a changed base; only the result is converted"
        raise SpecError(Problem("run", problem, "use the result, or train with keep_best"))
    if run.job.optim.startswith("schedule_free"):
        problem = f"{run.job.optim} averages the weights of all steps in its result alone"
        raise SpecError(Problem("run", problem, "use the result"))


def _require_room(checkpoint: Path, target: Path) -> None:
    needed = bytes_in(checkpoint) + FREE_BYTES_AFTER
    free = shutil.disk_usage(target).free
    if free < needed:
        problem = f"a copy takes {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB is free"
        raise SpecError(Problem("disk", problem, "make room first"))


def _copy(checkpoint: Path, target: Path, step: int) -> None:
    """Copy what a result needs of a checkpoint, and write its manifest.

    Raises SpecError if a file is not as it was written. Early versions wrote no manifests.
    """
    manifest = read_json(checkpoint / MANIFEST)
    expected: Mapping[str, Any] = manifest.get("files") or {}
    for name in expected:
        if not (checkpoint / name).is_file():
            raise _damaged(checkpoint, f"{name} is missing")
    files: dict[str, object] = {}
    for name, path in _result_files(checkpoint):
        copy = target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        _sync(copy)
        sha256 = sha256_of(copy)
        if expected and expected.get(name, {}).get("sha256") != sha256:
            raise _damaged(checkpoint, f"{name} is not as it was written")
        files[name] = {"bytes": copy.stat().st_size, "sha256": sha256}
    facts = manifest.get("facts") or {}
    content = {"step": step, PUBLISHED: checkpoint.name, "facts": facts, "files": files}
    write_json(target / MANIFEST, content)


def _result_files(checkpoint: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(checkpoint.rglob("*")):
        name = path.relative_to(checkpoint).as_posix()
        is_left_out = NOT_OF_A_RESULT.fullmatch(name) or name in (MANIFEST, TRAINER_STATE)
        if path.is_file() and not path.is_symlink() and not is_left_out:
            yield name, path


def _keep_generation_settings(folder: Path, building: Path) -> None:
    """Copy the settings that say where answers end from the result that is replaced."""
    before = folder / OUTPUT / BESIDE_AN_ADAPTER
    if before.is_file() and not (building / BESIDE_AN_ADAPTER).exists():
        shutil.copyfile(before, building / BESIDE_AN_ADAPTER)


def _replace_result(folder: Path, building: Path) -> None:
    """Put a new result in the place of the old one; keep that of the training. Raises OSError."""
    output, original = folder / OUTPUT, folder / ORIGINAL
    if output.exists() and not original.exists() and not _is_published(output):
        output.rename(original)
    else:
        _remove(output)
    building.rename(output)


def _is_published(output: Path) -> bool:
    return PUBLISHED in read_json(output / MANIFEST)


def _remove(folder: Path) -> None:
    """Free a name at once, then remove the folder that had it."""
    if folder.exists():
        hidden = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(hidden, ignore_errors=True)
        folder.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def _damaged(checkpoint: Path, how: str) -> SpecError:
    return SpecError(Problem("STEP", f"{checkpoint.name}: {how}", "choose another checkpoint"))


def _sync(path: Path) -> None:
    with suppress(OSError), path.open("rb+") as file:
        os.fsync(file.fileno())
