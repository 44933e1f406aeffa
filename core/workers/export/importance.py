"""Importance of the inputs of each layer over rows of a training, for the quantization.

For every column of a weight it is the mean square of what the layer multiplies it with, which is
what llama-imatrix of llama.cpp measures.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.training.contract.failures import TrainingError
from core.training.contract.job import Job
from core.training.contract.row_reader import BadRow
from core.training.contract.stages import STAGES
from core.training.data.encoders import encoder_for
from core.training.data.model_rows import rows_for_model
from core.training.data.rows import read_rows
from core.workers.export.task import ExportTask
from core.workers.trained_model import load_trained

MAX_ROWS = 200
MAX_TOKENS = 2048
"""Tokens of a row that are read."""
NO_ANSWERS = "An importance matrix needs rows with answers, and this stage has prompts only."


def write_importance(task: ExportTask, job: Job, model: Path, target: Path) -> None:
    """Write the mean squares of the inputs of all linear layers of a folder as an .npz file, by
    the names of the layers. Raises TrainingError."""
    task.enter("Measuring which weights matter on rows of the training")
    if STAGES[job.stage].generates:
        raise TrainingError(NO_ANSWERS)
    own = Job(model=str(model), dataset=job.dataset, method="lora", dtype=job.dtype)
    loaded = load_trained(own, None)
    sums: dict[str, Any] = {}
    num_tokens = num_rows = 0
    hooks = [
        module.register_forward_pre_hook(_adder(sums, name))
        for name, module in loaded.model.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    for ids in _rows(job, Path(task.request.run_folder)):
        with loaded.inference():
            loaded.model(input_ids=torch.tensor([ids], device=loaded.model.device), use_cache=False)
        num_tokens, num_rows = num_tokens + len(ids), num_rows + 1
        task.report(num_rows / MAX_ROWS)
    for hook in hooks:
        hook.remove()
    if not num_rows:
        raise TrainingError(NO_ANSWERS)
    means = {name: (total / num_tokens).cpu().numpy() for name, total in sums.items()}
    np.savez(target, **means)
    task.notes.append(
        f"Quantized with an importance matrix of {num_rows} rows ({num_tokens:,} tokens)."
    )


def _adder(sums: dict[str, Any], name: str) -> Callable[[Any, tuple[Any, ...]], None]:
    """Return a hook that adds the squares of the inputs of a layer, column by column."""

    def add(_module: Any, inputs: tuple[Any, ...]) -> None:
        squares = inputs[0].float().pow(2).flatten(0, -2).sum(dim=0)
        sums[name] = squares if name not in sums else sums[name] + squares

    return add


def _rows(job: Job, run: Path) -> Iterator[list[int]]:
    """Yield rows of the training in tokens, as the training reads them."""
    rows = read_rows(
        run, job.dataset, job.eval_dataset, job.eval_fraction, job.seed, stage=job.stage
    )
    tokenizer, rows = rows_for_model(job, rows)
    encoder = encoder_for(tokenizer, job.stage, rows.train[0], job.assistant_only_loss)
    found = 0
    for row in rows.train:
        try:
            tokens = encoder.encode_all(row)[0]
        except BadRow:
            continue
        yield list(tokens.ids[: min(job.max_length, MAX_TOKENS)])
        found += 1
        if found == MAX_ROWS:
            return
