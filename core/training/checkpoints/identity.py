"""What a training is: the facts that a checkpoint keeps, and which of them the job that continues it must share."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..contract.failures import TrainingError
from ..contract.files import sha256_of
from ..contract.job import Job
from .folder import VerifiedCheckpoint

MAY_CHANGE = frozenset(
    {
        # where the files are: their content must be the same
        "dataset",
        "eval_dataset",
        "dataset_sha256",
        # what is watched and kept
        "eval_steps",
        "halve_batch_on_oom",
        "logging_steps",
        "max_lost_answers",
        "num_samples",
        "sample_steps",
        "save_steps",
        "save_total_limit",
        "stop_when_diverged",
        # where and how it is computed: the numbers stay the same but for rounding
        "activation_memory_budget",
        "activation_offloading",
        "attn_implementation",
        "checkpoint_every_n_layers",
        "device",
        "gpu",
        "gradient_accumulation_steps",
        "gradient_checkpointing",
        "per_device_train_batch_size",
        "profile",
        "torch_compile",
        "use_liger_kernel",
        # libraries
        "versions",
    }
)
"""Facts that a run may change on its way. All others, new ones included, must be as they were."""
NOT_WORTH_A_WORD = frozenset({"dataset", "eval_dataset", "dataset_sha256", "gpu", "device"})


def facts_of(job: Job, folder: Path, num_rows: int, versions: Mapping[str, str]) -> dict[str, Any]:
    """Everything that decides what a training of a job in a run folder does."""
    fields = asdict(job)
    config = config_file(job)
    return fields | {
        "config_sha256": sha256_of(config),
        "model_commit": _commit(config),
        "data_sha256": _data_hashes(job, folder),
        "num_rows": num_rows,
        "effective_batch_size": job.effective_batch_size,
        "versions": dict(versions),
    }


def keep_smaller_batch(job: Job, checkpoint: VerifiedCheckpoint) -> Job:
    """Return the job with the micro-batch of the checkpoint if out-of-memory recovery made that smaller.

    The GPU has no more memory than before, and the rows of an optimizer step stay the same.
    """
    rows = checkpoint.facts.get("per_device_train_batch_size")
    passes = checkpoint.facts.get("gradient_accumulation_steps")
    if not (job.halve_batch_on_oom and isinstance(rows, int) and isinstance(passes, int)):
        return job
    if rows * passes != job.effective_batch_size or rows >= job.per_device_train_batch_size:
        return job
    return replace(job, per_device_train_batch_size=rows, gradient_accumulation_steps=passes)


def check_same(checkpoint: VerifiedCheckpoint, facts: Mapping[str, Any]) -> tuple[str, ...]:
    """What has changed since a checkpoint and may, a sentence each. Raises TrainingError for what may not."""
    changed = {
        name: (checkpoint.facts[name], value)
        for name, value in sorted(facts.items())
        if name in checkpoint.facts and checkpoint.facts[name] != value
    }
    if barred := [
        f"{name} was {_shown(old)}, now it is {_shown(new)}" for name, old, new in _barred(changed)
    ]:
        raise TrainingError(
            f"The run cannot go on from {checkpoint.folder.name}: {'; '.join(barred)}. "
            "Set it back in job.json, or start a new run.",
            cause="checkpoint_mismatch",
        )
    return tuple(
        f"From step {checkpoint.step} on {name} is {_shown(new)}; it was {_shown(old)}."
        for name, (old, new) in _parts(changed).items()
        if name not in NOT_WORTH_A_WORD
    )


def _barred(changed: Mapping[str, tuple[Any, Any]]) -> list[tuple[str, Any, Any]]:
    must_stay = {name: values for name, values in changed.items() if name not in MAY_CHANGE}
    return [(name, old, new) for name, (old, new) in _parts(must_stay).items()]


def _parts(changed: Mapping[str, tuple[Any, Any]]) -> dict[str, tuple[Any, Any]]:
    """Facts that are tables, such as the hashes of files, entry by entry."""
    parts: dict[str, tuple[Any, Any]] = {}
    for name, (old, new) in changed.items():
        if isinstance(old, dict) and isinstance(new, dict):
            entries = {key: (old.get(key), new.get(key)) for key in sorted(old.keys() | new.keys())}
            parts |= {
                f"{name} of {key}": pair for key, pair in entries.items() if pair[0] != pair[1]
            }
        else:
            parts[name] = (old, new)
    return parts


def _shown(value: Any) -> str:
    text = (
        repr(value) if isinstance(value, str | bool) else str("absent" if value is None else value)
    )
    return text if len(text) < 60 else text[:12] + "..." + text[-9:]


def config_file(job: Job) -> Path:
    """The config.json of the base model; of a Hub model the one that loading it will use."""
    if Path(job.model).is_dir():
        return Path(job.model) / "config.json"
    from transformers.utils.hub import cached_file

    return Path(str(cached_file(job.model, "config.json", revision=job.revision)))


def _commit(config: Path) -> str | None:
    """The commit of a Hub model, from its place in the cache: .../snapshots/<commit>/config.json"""
    return config.parent.name if config.parent.parent.name == "snapshots" else None


def _data_hashes(job: Job, folder: Path) -> dict[str, str]:
    """File -> SHA-256 of the rows: all in the run's own folder of data, and those that lie elsewhere."""
    named = (folder / path for path in (job.dataset, job.eval_dataset) if path)
    files = sorted({*(folder / "data").glob("*.jsonl"), *named})
    return {
        (path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix(): sha256_of(
            path
        )
        for path in files
    }
