"""The job form: one control for each JobSpec field, by the field's name. Knows labels and places, reads no value."""

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
DEMO_DATA = ("Demo: meet Pip", "demo")


def first_values(model: object, method: object, stage: object = "sft") -> dict[str, object]:
    """What the form shows before a person sets anything: the defaults, and Tailor chooses what only trades memory for
    speed; but for the demo, which has settings of its own."""
    profile = {} if model == "demo" else {"profile": "fastest"}
    return default_fields(model, method, stage or "sft") | profile


FIRST_SHOWN = first_values("demo", "lora")
"""The job that the page opens with: the demo."""


@dataclass(frozen=True)
class Control:
    """How one field is asked for."""

    field: str
    label: str
    group: str
    build: Callable[["Control"], Component]


def help_of(field: str, value: object) -> str:
    """One sentence: what the chosen method or stage does, or the field's own description."""
    chosen = {"method": METHODS.get(str(value)), "stage": STAGES.get(str(value))}.get(field)
    return chosen.help if chosen else JobSpec.model_fields[field].description or ""


def controls(group: str) -> tuple[Control, ...]:
    """The controls of one group, in the order of the page."""
    return tuple(control for control in CONTROLS if control.group == group)


def render(group: str) -> dict[str, Component]:
    """Places the controls of a group where the page stands now: {field: component}."""
    return {control.field: control.build(control) for control in controls(group)}


def _number(control: Control) -> Component:
    whole = JobSpec.model_fields[control.field].annotation is int
    return gr.Number(
        precision=0 if whole else None,
        step=1 if whole else STEPS.get(control.field, 0.01),
        **_common(control),
    )


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
    return gr.Radio(
        choices=[(method.title, method.id) for method in METHODS.values()], **_common(control)
    )


def _stage(control: Control) -> Component:
    return gr.Dropdown(
        choices=[(stage.title, stage.id) for stage in STAGES.values()], **_common(control)
    )


def _profile(control: Control) -> Component:
    return gr.Radio(choices=PROFILES, **_common(control))


def _gpu(control: Control) -> Component:
    return gr.Dropdown(choices=gpu_choices(), **_common(control))


def _common(control: Control) -> dict[str, Any]:
    """What every control shares. The place for a message stands under the label and starts as the help."""
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
    ("As I set it", "custom"),
]
STEPS: Mapping[str, float] = {
    "num_train_epochs": 1,
    "learning_rate": 1e-5,
    "lora_alpha": 1,
    "max_grad_norm": 0.1,
}
"""How far an arrow key moves a fractional number; 0.01 where it is not said."""


def model_choices() -> Choices:
    """(what a person reads, reference) of the demo and every preset."""
    presets = [
        (f"{model.name} · {count(model.num_parameters)} · {model.license}", model.id)
        for model in models().values()
    ]
    return [("Demo · tiny, needs no download and no GPU", "demo"), *presets]


def gpu_choices() -> Choices:
    """(what a person reads, preset id); this machine first."""
    here = local_gpu()
    presets = [(f"{gpu.name} · {memory(gpu.capacity_bytes)}", gpu.id) for gpu in gpus().values()]
    return [(f"This machine · {here.name} · {memory(here.capacity_bytes)}", "local"), *presets]


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
    Control("gradient_accumulation_steps", "Accumulation", "main", _number),
    Control("lora_r", "LoRA rank", "main", _number),
    Control("max_steps", "Max steps", "what", _number),
    Control("seed", "Seed", "what", _number),
    Control("revision", "Revision", "what", _text),
    Control("dtype", "Precision", "what", _choice),
    Control("adapter", "Continue from adapter", "what", _text),
    Control("device", "Device", "what", _number),
    Control("beta", "Beta", "stage", _number),
    Control("loss_type", "Preference loss", "stage", _choice),
    Control("precompute_ref_log_probs", "Ask the reference once", "stage", _switch),
    Control("num_generations", "Answers per prompt", "stage", _number),
    Control("max_completion_length", "Longest answer", "stage", _number),
    Control("temperature", "Temperature", "stage", _number),
    Control("reward_functions", "Rewards", "stage", _text),
    Control("reward_pattern", "Reward pattern", "stage", _text),
    Control("reward_model", "Reward model", "stage", _text),
    Control("eval_dataset", "Evaluation data", "rows", _text),
    Control("eval_fraction", "Evaluation share", "rows", _number),
    Control("packing", "Packing", "rows", _switch),
    Control("assistant_only_loss", "Learn from answers only", "rows", _switch),
    Control("shuffle", "Shuffle", "rows", _switch),
    Control("max_rows", "Row limit", "rows", _number),
    Control("max_lost_answers", "Lost answers allowed", "rows", _number),
    Control("mix", "More files, with weights", "rows", _lines),
    Control("dataset_sha256", "Content hash", "rows", _text),
    Control("lora_alpha", "LoRA alpha", "adapter", _number),
    Control("lora_dropout", "LoRA dropout", "adapter", _number),
    Control("target_modules", "Target modules", "adapter", _text),
    Control("init_lora_weights", "Initial weights", "adapter", _choice),
    Control("use_dora", "DoRA", "adapter", _switch),
    Control("use_rslora", "rsLoRA", "adapter", _switch),
    Control("modules_to_save", "Layers trained whole", "adapter", _text),
    Control("num_trainable_layers", "Last layers trained", "adapter", _number),
    Control("optim", "Optimizer", "optimizer", _choice),
    Control("lr_scheduler_type", "Schedule", "optimizer", _choice),
    Control("warmup_ratio", "Warm-up", "optimizer", _number),
    Control("weight_decay", "Weight decay", "optimizer", _number),
    Control("max_grad_norm", "Gradient norm", "optimizer", _number),
    Control("gradient_checkpointing", "Gradient checkpointing", "memory", _switch),
    Control("checkpoint_every_n_layers", "One layer of", "memory", _number),
    Control("activation_offloading", "Offload activations", "memory", _switch),
    Control("attn_implementation", "Attention", "memory", _choice),
    Control("torch_compile", "Compile", "memory", _switch),
    Control("activation_memory_budget", "Activations kept", "memory", _number),
    Control("use_liger_kernel", "Liger kernels", "memory", _switch),
    Control("bnb_4bit_quant_type", "4-bit type", "memory", _choice),
    Control("bnb_4bit_use_double_quant", "Double quantisation", "memory", _switch),
    Control("logging_steps", "Logging steps", "keeping", _number),
    Control("eval_steps", "Eval steps", "keeping", _number),
    Control("save_steps", "Save steps", "keeping", _number),
    Control("save_total_limit", "Checkpoints kept", "keeping", _number),
    Control("sample_steps", "Sample steps", "keeping", _number),
    Control("stop_when_diverged", "Stop when diverged", "keeping", _switch),
    Control("halve_batch_on_oom", "Halve the batch when out of memory", "keeping", _switch),
    Control("num_samples", "Sample questions", "keeping", _number),
)

LABELS: Mapping[str, str] = {control.field: control.label for control in CONTROLS}
"""Field -> what a person knows it by."""
ADVANCED: Mapping[str, str] = {
    "what": "Job",
    "rows": "Data",
    "adapter": "Adapter",
    "optimizer": "Optimizer",
    "memory": "Memory and speed",
    "keeping": "Watching and keeping",
}
"""Group -> heading, in the order of the page."""
