"""Merge an adapter into its base, file by file and tensor by tensor; or copy a whole result.

Holds one tensor of the model in memory at a time. Finished files are kept, so that a merge that
was killed continues with the next one.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import should_convert_module

from core.models.weights import name_in_model
from core.training.contract.files import sha256_of, write_json
from core.training.contract.job import Job
from core.training.contract.methods import METHODS
from core.training.contract.stages import STAGES
from core.training.contract.weights.adapters import WEIGHTS as ADAPTER_WEIGHTS
from core.training.contract.weights.files import (
    INDEX,
    StoredTensor,
    UnusableWeights,
    stored_tensors,
    weight_files,
)
from core.training.contract.weights.forms import published_form
from core.training.model.weights import OTHER_HEAD, BaseRequest, empty_model
from core.workers.export.layers import (
    HEAD,
    SCORE,
    BaseRounding,
    Changes,
    MergedWeights,
    find_changes,
    to_free_device,
)
from core.workers.export.shards import ShardEntry, Tensors, copy_file, entries_in_order, write_shard
from core.workers.export.task import ExportTask

DONE = "merged.json"
"""Hashes of finished files, in the folder of the task."""


@dataclass(frozen=True)
class MergedModel:
    """Facts about a merged model that its other files depend on."""

    is_untied: bool
    vocab_size: int | None
    """Rows of new embeddings; None if the base's stay."""
    score_class: str = ""
    """Class of transformers of a model that scores texts; "" for one that writes them."""


def merge(task: ExportTask, job: Job, in_float32: bool, target: Path) -> MergedModel:
    """Write the merged weights of a run into a folder.

    Raises UnusableWeights, OSError, and Stopped.
    """
    base = Path(task.request.base_folder)
    tensors = stored_tensors(base)
    _require_plain(base)
    config = AutoConfig.from_pretrained(base, trust_remote_code=False).get_text_config()
    output = Path(task.request.run_folder) / "output"
    is_scoring = STAGES[job.stage].head == "score"
    is_tied = bool(config.tie_word_embeddings)
    adapter, changes = find_changes(tensors, output, is_tied, is_scoring, base)
    weights = MergedWeights(
        Tensors({name: base / tensor.file for name, tensor in tensors.items()}),
        adapter.folder / ADAPTER_WEIGHTS,
        changes,
        _quantization(task, job, base, in_float32),
        to_free_device(),
    )
    files = weight_files(base)
    plans = {path.name: tuple(entries_in_order(path)) for path in files}
    plans = _with_new_shapes(plans, changes, adapter.tensors)
    if is_scoring:
        plans = _with_score_head(plans, adapter.tensors[changes.whole[SCORE]].shape)
    task.enter("Merging")
    _write(task, plans, weights, tensors, target)
    if (base / INDEX).is_file() and len(files) > 1:
        _write_index(plans, target)
    replaced = changes.whole.get(changes.embedding)
    rows = adapter.tensors[replaced].shape[0] if replaced else None
    scoring = _scoring_class(base) if is_scoring else ""
    return MergedModel(bool(changes.new_head), rows, scoring)


def copy_result(task: ExportTask, target: Path) -> None:
    """Copy the weights of a run whose result is a whole model."""
    output = Path(task.request.run_folder) / "output"
    task.enter("Copying")
    files = [*weight_files(output), *output.glob(INDEX)]
    total = sum(path.stat().st_size for path in files)
    progress = _Progress(task, total)
    done = _read_done(task)
    for path in files:
        if not _is_done(done, target / path.name):
            done[path.name] = copy_file(path, target / path.name, progress.add)
            write_json(task.folder / DONE, done)
        else:
            progress.add(path.stat().st_size)


def quantized_layers(base: Path) -> frozenset[str]:
    """Return the linear layers that bitsandbytes replaces while a base is loaded in 4 bits.

    transformers keeps the experts of a mixture as one tensor, which stays as it is.
    """
    model = empty_model(BaseRequest(str(base), "main", torch.bfloat16))
    kept = [*get_keys_to_not_convert(model), *(model._keep_in_fp32_modules or ())]
    return frozenset(
        name_in_model(name, {})
        for name, module in model.named_modules()
        if type(module) is torch.nn.Linear and should_convert_module(name, kept)
    )


class _Progress:
    """Share of bytes that are written."""

    def __init__(self, task: ExportTask, total: int) -> None:
        self._task, self._total, self._done = task, total, 0

    def add(self, num_bytes: int) -> None:
        """Count written bytes. Raises Stopped."""
        self._done += num_bytes
        self._task.report(self._done / max(self._total, 1))
        self._task.require_no_stop()


def _require_plain(base: Path) -> None:
    """Raise UnusableWeights for a base that is published in a quantized form."""
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    published = published_form(config)
    if published:
        problem = f"the base is published in {published.form.title}, which cannot be merged"
        fix = "use base and adapter together, or train over the 16-bit model that it was made from"
        raise UnusableWeights(problem, fix)


def _quantization(task: ExportTask, job: Job, base: Path, in_float32: bool) -> BaseRounding | None:
    if METHODS[job.method].base_bits != 4 or task.request.base != "trained":
        return None
    task.enter("Finding the layers that were trained in 4 bits")
    return BaseRounding(
        job.bnb_4bit_quant_type,
        job.bnb_4bit_use_double_quant,
        quantized_layers(base),
        in_float32,
    )


def _with_new_shapes(
    plans: Mapping[str, tuple[ShardEntry, ...]],
    changes: Changes,
    adapter: Mapping[str, StoredTensor],
) -> dict[str, tuple[ShardEntry, ...]]:
    """Return the tensors of each file with the sizes of layers that were trained whole, and with a
    new head at the end of the last."""
    result = {}
    for file, entries in plans.items():
        result[file] = tuple(
            ShardEntry(entry.name, entry.dtype, adapter[changes.whole[entry.name]].shape)
            if entry.name in changes.whole
            else entry
            for entry in entries
        )
    if changes.new_head:
        every = {entry.name: entry for entries in plans.values() for entry in entries}
        shape = every[changes.embedding].shape
        if HEAD in changes.whole:
            shape = adapter[changes.whole[HEAD]].shape
        last = list(result)[-1]
        result[last] += (ShardEntry(changes.new_head, every[changes.embedding].dtype, shape),)
    return result


def _with_score_head(
    plans: Mapping[str, tuple[ShardEntry, ...]], shape: tuple[int, ...]
) -> dict[str, tuple[ShardEntry, ...]]:
    """Return the tensors of each file with a head that scores in place of the one that writes."""
    result = {}
    for file, entries in plans.items():
        kept = tuple(entry for entry in entries if not entry.name.startswith(OTHER_HEAD))
        if kept:
            result[file] = kept
    result[list(result)[-1]] += (ShardEntry(SCORE, "F32", shape),)  # as it was trained
    return result


def _scoring_class(base: Path) -> str:
    """Return the name of the class of transformers that scores with a base."""
    request = BaseRequest(str(base), "main", torch.bfloat16, has_score_head=True)
    return type(empty_model(request)).__name__


def _write(
    task: ExportTask,
    plans: Mapping[str, tuple[ShardEntry, ...]],
    weights: MergedWeights,
    tensors: Mapping[str, StoredTensor],
    target: Path,
) -> None:
    total = sum(entry.num_bytes for entries in plans.values() for entry in entries)
    progress = _Progress(task, total)
    done = _read_done(task)

    def value_of(entry: ShardEntry) -> torch.Tensor:
        task.require_no_stop()
        module = name_in_model(entry.name, tensors).removesuffix(".weight")
        return weights.tensor(entry.name, module)

    for file, entries in plans.items():
        if _is_done(done, target / file):
            progress.add(sum(entry.num_bytes for entry in entries))
            continue
        done[file] = write_shard(target / file, entries, value_of, progress.add)
        write_json(task.folder / DONE, done)


def _read_done(task: ExportTask) -> dict[str, str]:
    """Return file -> SHA-256 of what an earlier attempt has finished."""
    with suppress(OSError, ValueError):
        found = json.loads((task.folder / DONE).read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {}


def _is_done(done: Mapping[str, str], path: Path) -> bool:
    return path.name in done and path.is_file() and sha256_of(path) == done[path.name]


def _write_index(plans: Mapping[str, tuple[ShardEntry, ...]], target: Path) -> None:
    size = sum(entry.num_bytes for entries in plans.values() for entry in entries)
    index: dict[str, Any] = {"metadata": {"total_size": size}, "weight_map": dict(_places(plans))}
    write_json(target / INDEX, index)


def _places(plans: Mapping[str, tuple[ShardEntry, ...]]) -> Iterator[tuple[str, str]]:
    for file, entries in plans.items():
        for entry in entries:
            yield entry.name, file
