"""Load a model as it was trained: its base with its adapter, or its own weights. Trains nothing."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from core.training.contract.failures import TrainingError
from core.training.contract.job import Job
from core.training.contract.stages import STAGES
from core.training.contract.weights.adapters import CHANGES_BASE, SETTINGS, WEIGHTS
from core.training.data.tokenizer import load_tokenizer
from core.training.model.adapter import add_adapter, convert_to_lora, read_adapter
from core.training.model.ends import stop_at_all_ends
from core.training.model.load import (
    MAX_PARAMETERS_FOR_ONE_THREAD,
    ModelPrecision,
    cast_adapters,
    choose_attention,
    choose_precision,
    keep_4bit_layers_trainable,
    quantization_config,
)
from core.training.model.weights import BaseRequest, load_base

TOKENIZER = "tokenizer_config.json"
INITIAL_ADAPTER = ".start.safetensors"
"""Initial weights of an adapter that changed its base, in the folder of its run."""


@dataclass(frozen=True)
class TrainedModel:
    """Model that answers, in evaluation mode and without gradients, with its tokenizer."""

    model: Any
    tokenizer: Any
    precision: ModelPrecision

    @property
    def has_adapter(self) -> bool:
        """True if the model before the training is this one with its adapter off."""
        return isinstance(self.model, PeftModel)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        ends = self.model.generation_config.eos_token_id
        if ends is None:
            return ()
        return tuple(ends) if isinstance(ends, list) else (ends,)

    @contextmanager
    def without_adapter(self) -> Iterator[None]:
        """Let the model answer as it was before the training. Changes nothing without an
        adapter."""
        with self.model.disable_adapter() if self.has_adapter else nullcontext():
            yield

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Compute in the precision of the training, without gradients."""
        autocast = self.precision.autocast
        device = self.model.device.type
        is_mixed = autocast is not None and device == "cuda"
        with torch.inference_mode(), torch.autocast(device, autocast, enabled=is_mixed):
            yield


def load_trained(job: Job, weights: Path | None) -> TrainedModel:
    """Load the result or a checkpoint of a job from its folder, or the job's model without them.

    A job that trained an adapter has its base loaded as it was trained, such as in 4 bits. A model
    that no run has trained is a job with its name, too. Raises TrainingError, and what the
    libraries raise for a model that is not there.
    """
    if STAGES[job.stage].head == "score":
        raise TrainingError("A reward model scores answers and writes none: choose another run.")
    return _load(job, weights)


def load_scoring(job: Job, weights: Path | None) -> TrainedModel:
    """Load a reward model in the same way. Raises TrainingError if it has no head that scores, and
    as load_trained does."""
    return _load(job, weights)


def _load(job: Job, weights: Path | None) -> TrainedModel:
    precision = choose_precision(job.dtype, job.method)
    has_own_weights = weights is not None and not job.trains_adapter
    source = replace(job, model=str(weights), revision="main") if has_own_weights else job
    model = _load_base(source, precision, is_whole=has_own_weights or not job.trains_adapter)
    tokenizer = _load_tokenizer(job, weights)
    stop_at_all_ends(model, tokenizer)
    keep_4bit_layers_trainable(model)
    if weights is not None and job.trains_adapter:
        model = _add_adapter(job, model, weights, precision)
    model.requires_grad_(False)
    model.eval()
    is_small = model.num_parameters() < MAX_PARAMETERS_FOR_ONE_THREAD
    if is_small and not torch.cuda.is_available():
        torch.set_num_threads(1)  # for such small products threads cost more than they gain
    return TrainedModel(model, tokenizer, precision)


def _load_base(job: Job, precision: ModelPrecision, *, is_whole: bool) -> Any:
    """Return the model of a job; only one without an adapter must have its head that scores."""
    # Answers of one batch are padded on the left, which needs a mask.
    attention = "eager" if choose_attention(job) == "eager" else "sdpa"
    request = BaseRequest(
        job.model,
        job.revision,
        precision.weights,
        has_score_head=STAGES[job.stage].head == "score",
        quantization=quantization_config(job, precision),
        method=job.method,
        attention=attention,
        compute_dtype=precision.autocast or precision.weights,
    )
    model, fresh = load_base(request)
    if fresh and is_whole:
        raise TrainingError(f"{job.model} has no head that scores.")
    return model


def _load_tokenizer(job: Job, weights: Path | None) -> Any:
    """Return the tokenizer that a result holds, with its chat template, else that of the model."""
    if weights is not None and (weights / TOKENIZER).is_file():
        return load_tokenizer(str(weights), "main", is_conversational=False)
    return load_tokenizer(job.model, job.revision, is_conversational=False)


def _add_adapter(job: Job, model: Any, weights: Path, precision: ModelPrecision) -> Any:
    """Return the model with the adapter in a folder, in the precision in which it was trained."""
    with tempfile.TemporaryDirectory(prefix="tailor-adapter-") as spare:
        folder = _plain_adapter(job, weights, Path(spare))
        model = add_adapter(
            model, read_adapter(str(folder), "adapter"), "adapter", is_trainable=True
        )
    is_4bit = getattr(model, "is_loaded_in_4bit", False)
    is_quantized = is_4bit or getattr(model, "is_loaded_in_8bit", False)
    dtype = precision.adapters(is_quantized)
    if dtype is not None:
        cast_adapters(model, dtype)
    return model


def _plain_adapter(job: Job, weights: Path, spare: Path) -> Path:
    """Return the folder of an adapter that fits the original base.

    That of a checkpoint may fit the base only as the initialization changed it; then a plain one is
    made in the spare folder.
    """
    initial = weights.parent.parent / INITIAL_ADAPTER
    if job.init_lora_weights not in CHANGES_BASE or weights.name == "output":
        return weights
    if not initial.is_file():
        return weights
    for name in (SETTINGS, WEIGHTS):
        shutil.copy(weights / name, spare / name)
    convert_to_lora(spare, initial)
    return spare
