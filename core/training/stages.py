"""Stages: how each one's trainer is built from a job. A stage is one function and one line in STAGES."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from transformers import PrinterCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from .data import Rows
from .failure import TrainingError
from .load import Loaded, Precision
from .watch import Watch, Watched

SAME_NAMES = (
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "learning_rate",
    "logging_steps",
    "lr_scheduler_type",
    "max_grad_norm",
    "max_steps",
    "num_train_epochs",
    "optim",
    "per_device_train_batch_size",
    "save_total_limit",
    "seed",
    "torch_compile",
    "use_liger_kernel",
    "weight_decay",
)
"""Fields of a job that every trainer of TRL has under the same name."""


class SupervisedTrainer(Watched, SFTTrainer):
    """TRL's SFTTrainer, watched."""


def sft(job: Any, loaded: Loaded, rows: Rows, watch: Watch) -> Watched:
    """Supervised fine-tuning. Raises TrainingError if no row is left to learn from."""
    on_answers = job.assistant_only_loss and rows.has_marked_answers
    settings = _settings(job, loaded.precision, rows, watch.record.folder) | {
        "max_length": job.max_length,
        "packing": job.packing,
        "packing_strategy": "bfd",
        "assistant_only_loss": on_answers and rows.is_language_modeling,
        "completion_only_loss": on_answers and not rows.is_language_modeling,
    }
    if job.assistant_only_loss and not rows.has_marked_answers:
        print("The rows are plain texts without answers: the loss counts every token.")
    trainer: Any = SupervisedTrainer(
        model=loaded.model,
        args=SFTConfig(**settings),
        train_dataset=rows.train,
        eval_dataset=rows.eval,
        processing_class=loaded.tokenizer,
        peft_config=loaded.adapter,
        watch=watch,
        adapter_dtype=loaded.precision.quantised_base_adapters if loaded.is_quantised else None,
    )
    if len(trainer.train_dataset) == 0:
        raise TrainingError(f"No row is left to learn from: within max_length {job.max_length} there is no answer.")
    trainer.remove_callback(PrinterCallback)
    return trainer


STAGES: Mapping[str, Callable[[Any, Loaded, Rows, Watch], Watched]] = MappingProxyType({"sft": sft})


def _settings(job: Any, precision: Precision, rows: Rows, folder: Path) -> dict[str, Any]:
    """A job in the words of TrainingArguments: most fields by their own name, the exceptions here."""
    on_gpu = torch.cuda.is_available()
    if job.use_liger_kernel and not on_gpu:
        raise TrainingError("use_liger_kernel needs a CUDA device: switch it off.")
    return {name: getattr(job, name) for name in SAME_NAMES} | {
        "output_dir": str(folder / "checkpoints"),
        # a float below 1 is a share of the steps, 1 would be one step
        "warmup_steps": min(float(job.warmup_ratio), 0.999999),
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "per_device_eval_batch_size": job.per_device_train_batch_size,
        "eval_strategy": "steps" if rows.eval is not None else "no",
        "eval_steps": job.eval_steps or 0.1,  # a float is a share of the steps
        "save_strategy": "steps" if job.save_steps else "epoch",
        "save_steps": job.save_steps or 500,  # not used with epochs, but 0 is refused
        "bf16": precision.autocast == torch.bfloat16,
        "fp16": precision.autocast == torch.float16,
        "use_cpu": not on_gpu,
        "dataloader_pin_memory": on_gpu,
        "logging_nan_inf_filter": False,  # a loss that is not a number is shown as such
        "disable_tqdm": not sys.stderr.isatty(),
        "report_to": "none",
    }
