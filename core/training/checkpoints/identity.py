"""Identity of a training: the facts that a checkpoint keeps, and which of them may change when a
run is resumed."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..contract.failures import TrainingError
from ..contract.files import sha256_of
from ..contract.job import Job, is_moved, is_sharded
from ..contract.weights.files import UnusableWeights, fingerprint_of
from .folder import VerifiedCheckpoint

# fmt: off
MAY_CHANGE = frozenset({
    # places of files: their content must be the same
    "dataset", "eval_dataset", "dataset_sha256",
    # logging, evaluation and saving
    "accept_unread", "check_steps", "check_suites", "early_stopping_patience",
    "early_stopping_threshold", "eval_steps", "halve_batch_on_oom", "keep_best", "logging_steps",
    "max_lost_answers", "num_samples", "sample_steps", "save_steps", "save_total_limit",
    "stop_when_diverged",
    # where and how it is computed: results differ by rounding only
    "activation_memory_budget", "activation_offloading", "attn_implementation",
    "checkpoint_every_n_layers", "device", "gpu", "gradient_accumulation_steps",
    "gradient_checkpointing", "num_devices", "parallelism", "per_device_train_batch_size",
    "profile", "torch_compile", "use_liger_kernel",
    # library versions
    "versions",
})
# fmt: on
"""Facts that may change when a run is resumed. All others, also those of new fields, must stay the
same."""
SILENT_CHANGES = frozenset({"dataset", "eval_dataset", "dataset_sha256", "gpu", "device"})
"""Facts whose change is not worth a note."""
LONGEST_SHOWN_VALUE = 60


def facts_of(job: Job, folder: Path, num_rows: int, versions: Mapping[str, str]) -> dict[str, Any]:
    """Return everything that decides the outcome of a training: job, model, data and library
    versions."""
    config = config_file(job)
    return {
        **asdict(job),
        "config_sha256": sha256_of(config),
        "model_commit": _commit(config),
        "weights_fingerprint": _fingerprint(job),
        "data_sha256": _data_hashes(job, folder),
        "num_rows": num_rows,
        "effective_batch_size": job.effective_batch_size,
        "versions": dict(versions),
    }


def keep_smaller_batch(job: Job, checkpoint: VerifiedCheckpoint) -> Job:
    """Return the job with the micro-batch of the checkpoint if out-of-memory recovery made that
    smaller.

    The GPU has no more memory than before, and the rows of an optimizer step stay the same.
    """
    rows = checkpoint.facts.get("per_device_train_batch_size")
    passes = checkpoint.facts.get("gradient_accumulation_steps")
    if not (job.halve_batch_on_oom and isinstance(rows, int) and isinstance(passes, int)):
        return job
    num_rows = rows * passes * job.num_devices
    if num_rows != job.effective_batch_size or rows >= job.per_device_train_batch_size:
        return job
    return replace(job, per_device_train_batch_size=rows, gradient_accumulation_steps=passes)


def require_same_division(job: Job, checkpoint: VerifiedCheckpoint) -> None:
    """Raise TrainingError if a checkpoint holds a divided model and the job's is whole, or the
    other way round: their optimizer states have other forms."""
    facts = checkpoint.facts
    was_sharded = is_sharded(facts.get("num_devices", 1), facts.get("parallelism"))
    if was_sharded == job.is_sharded:
        return
    division = "whole on each device"
    fix = "set parallelism to ddp, or num_devices to 1"
    if was_sharded:
        division = "divided among devices"
        fix = "set parallelism to fsdp and num_devices to 2 or more"
    raise TrainingError(
        f"{checkpoint.folder.name} was written by a training whose model was {division}: {fix} "
        "in job.json to resume it, or start a new run.",
        cause="checkpoint_mismatch",
    )


def keep_rows_of_step(job: Job, checkpoint: VerifiedCheckpoint) -> Job:
    """Return the job with as many passes as keep the rows of an optimizer step, if the number of
    devices has changed.

    Raises TrainingError if no number of passes does.
    """
    devices_before = checkpoint.facts.get("num_devices", 1)
    num_rows = checkpoint.facts.get("effective_batch_size", job.effective_batch_size)
    if devices_before == job.num_devices or num_rows == job.effective_batch_size:
        return job
    num_passes, rest = divmod(num_rows, job.per_device_train_batch_size * job.num_devices)
    if rest or not num_passes:
        raise TrainingError(
            f"An optimizer step of this run takes {num_rows} rows, which {job.num_devices} devices "
            f"with per_device_train_batch_size {job.per_device_train_batch_size} cannot divide: "
            f"resume it with {devices_before}, as before, or choose a smaller batch.",
            cause="checkpoint_mismatch",
        )
    return replace(job, gradient_accumulation_steps=num_passes)


def allowed_changes(checkpoint: VerifiedCheckpoint, facts: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a sentence about each fact that has changed since a checkpoint and may.

    Raises TrainingError if any other fact has changed.
    """
    changed = {
        name: (checkpoint.facts[name], value)
        for name, value in sorted(facts.items())
        if name in checkpoint.facts
        and checkpoint.facts[name] != value
        # the model's files have facts of their own, and a checkpoint holds its adapter
        and not is_moved(name, checkpoint.facts[name], value)
    }
    forbidden = _entries({name: pair for name, pair in changed.items() if name not in MAY_CHANGE})
    if forbidden:
        sentences = [
            f"{name} was {_shown(old)}, now it is {_shown(new)}"
            for name, (old, new) in forbidden.items()
        ]
        raise TrainingError(
            f"The run cannot be resumed from {checkpoint.folder.name}: {'; '.join(sentences)}. "
            "Set it back in job.json, or start a new run.",
            cause="checkpoint_mismatch",
        )
    return tuple(
        f"From step {checkpoint.step} on {name} is {_shown(new)}; it was {_shown(old)}."
        for name, (old, new) in _entries(changed).items()
        if name not in SILENT_CHANGES
    )


def config_file(job: Job) -> Path:
    """Return the config.json of the base model; of a Hub model, the one in the cache that loading
    will use."""
    if Path(job.model).is_dir():
        return Path(job.model) / "config.json"
    from transformers.utils.hub import cached_file

    return Path(str(cached_file(job.model, "config.json", revision=job.revision)))


def _entries(changed: Mapping[str, tuple[Any, Any]]) -> dict[str, tuple[Any, Any]]:
    """Return name -> (old, new), with facts that are mappings, such as file hashes, split into
    their entries."""
    entries: dict[str, tuple[Any, Any]] = {}
    for name, (old, new) in changed.items():
        if not isinstance(old, dict) or not isinstance(new, dict):
            entries[name] = (old, new)
            continue
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                entries[f"{name} of {key}"] = (old.get(key), new.get(key))
    return entries


def _shown(value: Any) -> str:
    if value is None:
        return "absent"
    text = repr(value) if isinstance(value, str | bool) else str(value)
    return text if len(text) < LONGEST_SHOWN_VALUE else text[:12] + "..." + text[-9:]


def _commit(config: Path) -> str | None:
    """Return the commit of a Hub model from its path in the cache,
    .../snapshots/<commit>/config.json."""
    return config.parent.name if config.parent.parent.name == "snapshots" else None


def _fingerprint(job: Job) -> str | None:
    """Return the fingerprint of a base in a folder; one of the Hub has its commit."""
    try:
        return fingerprint_of(Path(job.model)) if Path(job.model).is_dir() else None
    except (OSError, UnusableWeights):  # loading says what is wrong
        return None


def _data_hashes(job: Job, folder: Path) -> dict[str, str]:
    """Return file -> SHA-256 of all rows: those in the run's data folder, and those that the job
    names elsewhere."""
    named = [folder / path for path in (job.dataset, job.eval_dataset) if path]
    hashes = {}
    for path in sorted({*(folder / "data").glob("*.jsonl"), *named}):
        name = path.relative_to(folder) if path.is_relative_to(folder) else path
        hashes[name.as_posix()] = sha256_of(path)
    return hashes
