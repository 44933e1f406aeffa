"""Checkpoints of runs that were never trained: small files under a true manifest."""

from pathlib import Path

from core.training.checkpoints import seal

WEIGHTS = "adapter_model.safetensors"


def add_checkpoint(folder: Path, step: int, **more: object) -> Path:
    """Add a checkpoint to a run folder; `more` are further entries of its manifest."""
    checkpoint = folder / "checkpoints" / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / WEIGHTS).write_bytes(b"weights of step %d" % step)
    (checkpoint / "optimizer.pt").write_bytes(b"states")
    seal(checkpoint, {"step": step, "max_steps": step, "facts": {}, **more})
    return checkpoint


def add_result(folder: Path, step: int) -> Path:
    """Add the result that a training wrote at its last step."""
    output = folder / "output"
    output.mkdir()
    (output / WEIGHTS).write_bytes(b"result of the training")
    seal(output, {"step": step, "facts": {}})
    return output
