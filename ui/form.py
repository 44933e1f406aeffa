"""Job form: one control for each JobSpec field, named as the field. Knows labels and places.

Reads no value; the handlers do.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import gradio as gr
from gradio.components import Component

from core.device import local_gpu
from core.job import JobSpec
from core.models import gpus, models
from core.resolve import default_fields
from core.training.contract.methods import METHODS
from core.training.contract.stages import STAGES
from core.wording import count, memory

Choices = list[tuple[str, str]]
"""(label, value) of each option."""
DEMO_DATA = ("Demo: meet Pip", "demo")


def first_values(model: object, method: object, stage: object = "sft") -> dict[str, object]:
    """Return the values of a form in which the user has set nothing.

    These are the defaults, with the profile "fastest". The demo has settings of its own and no
    profile.
    """
    fields = default_fields(model, method, stage or "sft")
    if model != "demo":
        fields["profile"] = "fastest"
    return fields


FIRST_SHOWN = first_values("demo", "lora")
"""Values that the page opens with: those of the demo."""


@dataclass(frozen=True)
class Control:
    """Place and label of one field, and how its component is built."""

    field: str
    label: str
    group: str
    build: Callable[["Control"], Component]


def help_of(field: str, value: object) -> str:
    """Return one sentence of help: that of the chosen method or stage, or the field's own."""
    if field == "method" and str(value) in METHODS:
        return METHODS[str(value)].help
    if field == "stage" and str(value) in STAGES:
        return STAGES[str(value)].help
    return JobSpec.model_fields[field].description or ""


def controls(group: str) -> tuple[Control, ...]:
    """Return the controls of one group, in the order of the page."""
    return tuple(control for control in CONTROLS if control.group == group)


def render(group: str) -> dict[str, Component]:
    """Build the controls of a group here: {field: component}."""
    return {control.field: control.build(control) for control in controls(group)}


def _number(control: Control) -> Component:
    if JobSpec.model_fields[control.field].annotation is int:
        return gr.Number(precision=0, step=1, **_common(control))
    step = STEPS.get(control.field, DEFAULT_STEP)
    return gr.Number(precision=None, step=step, **_common(control))


def _choice(control: Control) -> Component:
    options = get_args(JobSpec.model_fields[control.field].annotation)
    return gr.Dropdown(choices=list(options), **_common(control))


def _switch(control: Control) -> Component:
    return gr.Checkbox(**_common(control))


def _text(control: Control) -> Component:
    return gr.Textbox(max_lines=1, **_common(control))


def _lines(control: Control) -> Component:
    return gr.Textbox(lines=2, max_lines=6, **_common(control))


def _model(control: Control) -> Component:
    return gr.Dropdown(choices=model_choices(), allow_custom_value=True, **_common(control))


def _dataset(control: Control) -> Component:
    return gr.Dropdown(choices=[DEMO_DATA], allow_custom_value=True, **_common(control))


def _method(control: Control) -> Component:
    choices = [(method.title, method.id) for method in METHODS.values()]
    return gr.Radio(choices=choices, **_common(control))


def _stage(control: Control) -> Component:
    choices = [(stage.title, stage.id) for stage in STAGES.values()]
    return gr.Dropdown(choices=choices, **_common(control))


def _profile(control: Control) -> Component:
    return gr.Radio(choices=PROFILES, **_common(control))


def _gpu(control: Control) -> Component:
    return gr.Dropdown(choices=gpu_choices(), **_common(control))


def _common(control: Control) -> dict[str, Any]:
    """Return the arguments of every component. `info` shows the help, or a problem instead."""
    return {
        "label": control.label,
        "info": help_of(control.field, FIRST_SHOWN[control.field]),
        "value": FIRST_SHOWN[control.field],
        "elem_id": f"field-{control.field}",
        "interactive": True,
        "min_width": 140,
    }


PROFILES = [
    ("Fastest that fits", "fastest"),
    ("Smallest memory", "smallest"),
    ("Custom", "custom"),
]
DEFAULT_STEP = 0.01
STEPS: Mapping[str, float] = {
    "num_train_epochs": 1,
    "learning_rate": 1e-5,
    "lora_alpha": 1,
    "max_grad_norm": 0.1,
}
"""How far an arrow key moves a fractional number, where it is not DEFAULT_STEP."""


def model_choices() -> Choices:
    """Return the demo and every preset as (label, reference)."""
    choices = [("Demo · tiny, needs no download and no GPU", "demo")]
    for model in models().values():
        size = count(model.num_parameters)
        choices.append((f"{model.name} · {size} · {model.license}", model.id))
    return choices


def gpu_choices() -> Choices:
    """Return this machine and every preset as (label, preset id)."""
    here = local_gpu()
    choices = [(f"This machine · {here.name} · {memory(here.capacity_bytes)}", "local")]
    choices += [(f"{gpu.name} · {memory(gpu.capacity_bytes)}", gpu.id) for gpu in gpus().values()]
    return choices


CONTROLS: tuple[Control, ...] = (
    Control("model", "Model", "model", _model),
    Control("dataset", "Data", "data", _dataset),
    Control("method", "Method", "method", _method),
    Control("stage", "Stage", "objective", _stage),
    Control("gpu", "GPU", "gpu", _gpu),
    Control("profile", "Profile", "profile", _profile),
    Control("num_train_epochs", "Epochs", "main", _number),
    Control("learning_rate", "Learning rate", "main", _number),
    Control("max_length", "Max length", "main", _number),
    Control("per_device_train_batch_size", "Batch size", "main", _number),
    Control("gradient_accumulation_steps", "Gradient accumulation", "main", _number),
    Control("lora_r", "LoRA rank", "main", _number),
    Control("max_steps", "Max steps", "job", _number),
    Control("seed", "Seed", "job", _number),
    Control("revision", "Revision", "job", _text),
    Control("dtype", "Precision", "job", _choice),
    Control("adapter", "Continue from adapter", "job", _text),
    Control("device", "GPU index", "job", _number),
    Control("beta", "Beta", "stage", _number),
    Control("loss_type", "Preference loss", "stage", _choice),
    Control("precompute_ref_log_probs", "Precompute reference", "stage", _switch),
    Control("num_generations", "Answers per prompt", "stage", _number),
    Control("max_completion_length", "Max answer length", "stage", _number),
    Control("temperature", "Temperature", "stage", _number),
    Control("reward_functions", "Reward functions", "stage", _text),
    Control("reward_pattern", "Reward pattern", "stage", _text),
    Control("reward_model", "Reward model", "stage", _text),
    Control("eval_dataset", "Evaluation data", "rows", _text),
    Control("eval_fraction", "Evaluation share", "rows", _number),
    Control("packing", "Packing", "rows", _switch),
    Control("assistant_only_loss", "Train on answers only", "rows", _switch),
    Control("shuffle", "Shuffle", "rows", _switch),
    Control("max_rows", "Max rows", "rows", _number),
    Control("max_lost_answers", "Max share of lost answers", "rows", _number),
    Control("mix", "More data files", "rows", _lines),
    Control("dataset_sha256", "Dataset SHA-256", "rows", _text),
    Control("lora_alpha", "LoRA alpha", "adapter", _number),
    Control("lora_dropout", "LoRA dropout", "adapter", _number),
    Control("target_modules", "Target modules", "adapter", _text),
    Control("init_lora_weights", "Adapter initialization", "adapter", _choice),
    Control("use_dora", "DoRA", "adapter", _switch),
    Control("use_rslora", "rsLoRA", "adapter", _switch),
    Control("modules_to_save", "Modules trained in full", "adapter", _text),
    Control("num_trainable_layers", "Trainable last layers", "adapter", _number),
    Control("optim", "Optimizer", "optimizer", _choice),
    Control("lr_scheduler_type", "Learning rate schedule", "optimizer", _choice),
    Control("warmup_ratio", "Warmup ratio", "optimizer", _number),
    Control("weight_decay", "Weight decay", "optimizer", _number),
    Control("max_grad_norm", "Max gradient norm", "optimizer", _number),
    Control("gradient_checkpointing", "Gradient checkpointing", "memory", _switch),
    Control("checkpoint_every_n_layers", "Checkpoint every n layers", "memory", _number),
    Control("activation_offloading", "Offload activations", "memory", _switch),
    Control("attn_implementation", "Attention kernel", "memory", _choice),
    Control("torch_compile", "Compile (torch.compile)", "memory", _switch),
    Control("activation_memory_budget", "Activation memory budget", "memory", _number),
    Control("use_liger_kernel", "Liger kernels", "memory", _switch),
    Control("bnb_4bit_quant_type", "4-bit data type", "memory", _choice),
    Control("bnb_4bit_use_double_quant", "Double quantization", "memory", _switch),
    Control("logging_steps", "Log every n steps", "logging", _number),
    Control("eval_steps", "Evaluate every n steps", "logging", _number),
    Control("save_steps", "Save every n steps", "logging", _number),
    Control("save_total_limit", "Checkpoints to keep", "logging", _number),
    Control("sample_steps", "Sample every n steps", "logging", _number),
    Control("stop_when_diverged", "Stop on divergence", "logging", _switch),
    Control("halve_batch_on_oom", "Halve batch when out of memory", "logging", _switch),
    Control("num_samples", "Sample prompts", "logging", _number),
)

LABELS: Mapping[str, str] = {control.field: control.label for control in CONTROLS}
"""Field -> label on the page."""
ADVANCED: Mapping[str, str] = {
    "job": "Job",
    "rows": "Data",
    "adapter": "Adapter",
    "optimizer": "Optimizer",
    "memory": "Memory and speed",
    "logging": "Logging and checkpoints",
}
"""Group -> heading under Advanced, in the order of the page."""
