"""Job form: one control for each JobSpec field, named as the field. Knows labels and places.

Reads no value; the handlers do.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, get_args

import gradio as gr
from gradio.components import Component

from core.device import local_gpu, machine
from core.job import JobSpec, TailorError
from core.models import gpus, models
from core.resolve import default_fields
from core.training.contract.job import NO_SUITE, USUAL_SUITES
from core.training.contract.methods import METHODS
from core.training.contract.stages import STAGES
from core.wording import count, memory

Choices = list[tuple[str, str]]
"""(label, value) of each option."""
DEMO_DATA = ("Demo: meet Pip", "demo")


def first_values(model: object, method: object, stage: object = "sft") -> dict[str, object]:
    """Return the values of a form in which the user has set nothing.

    These are the defaults, with the profile "fastest". The demo has its own settings.
    """
    fields = default_fields(model, method, stage or "sft")
    if model != "demo":
        fields["profile"] = "fastest"
    return fields


FIRST_SHOWN = first_values("demo", "lora")
"""Values that the page opens with: those of the demo."""


@dataclasses.dataclass(frozen=True)
class Control:
    """Place and label of one field. Its component follows from the type of the field."""

    field: str
    label: str
    group: str
    choices: Callable[[], Choices] | None = None
    """For a menu whose options are not in the type of the field."""
    component: Callable[..., Component] | None = None
    """None for the usual component of the type."""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Further arguments of the component."""


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
    return {control.field: build(control) for control in controls(group)}


def build(control: Control) -> Component:
    """Build the component of a field. Its `info` shows the help, or a problem instead."""
    kind, options = _usual_component(control.field)
    if control.choices:
        kind, options = gr.Dropdown, {"choices": control.choices()}
    return (control.component or kind)(
        label=control.label,
        info=help_of(control.field, FIRST_SHOWN[control.field]),
        value=FIRST_SHOWN[control.field],
        elem_id=f"field-{control.field}",
        interactive=True,
        min_width=140,
        **{**options, **control.options},
    )


def offers(field: str, value: object) -> bool:
    """Return whether the menu of a field has a value. Fields without a menu take any."""
    choices = _closed_choices().get(field)
    return choices is None or value in choices


@cache
def _closed_choices() -> Mapping[str, frozenset[object]]:
    """Return the values that each menu has, of those that take no others."""
    parts = {control.field: build(control) for control in CONTROLS}
    return {
        field: frozenset(value for _label, value in part.choices)
        for field, part in parts.items()
        if isinstance(part, gr.Radio | gr.Dropdown) and not _takes_others(part)
    }


def _takes_others(part: gr.Radio | gr.Dropdown) -> bool:
    return isinstance(part, gr.Dropdown) and part.allow_custom_value


def _usual_component(field: str) -> tuple[Callable[..., Component], dict[str, Any]]:
    """Return the component for the type of a field, with the arguments that the type brings."""
    annotation = JobSpec.model_fields[field].annotation
    if annotation is bool:
        return gr.Checkbox, {}
    if annotation is int:
        return gr.Number, {"precision": 0, "step": 1}
    if annotation is float:
        return gr.Number, {"step": STEPS.get(field, DEFAULT_STEP)}
    if options := get_args(annotation):
        return gr.Dropdown, {"choices": list(options)}
    return gr.Textbox, {"max_lines": 1}


DEFAULT_STEP = 0.01
STEPS: Mapping[str, float] = {
    "num_train_epochs": 1,
    "learning_rate": 1e-5,
    "lora_alpha": 1,
    "max_grad_norm": 0.1,
    "loraplus_lr_ratio": 1,
    "neftune_noise_alpha": 1,
    "lr_power": 0.5,
    "early_stopping_threshold": 0.001,
}
"""How far an arrow key moves a fractional number, where it is not DEFAULT_STEP."""


NO_MARKS: Mapping[str, str] = MappingProxyType({})


def best_choices() -> Choices:
    """Return what can say which checkpoint is best. The suites of a user are typed."""
    return [(name, name) for name in (*NO_SUITE, *USUAL_SUITES)]


def model_choices(marks: Mapping[str, str] = NO_MARKS) -> Choices:
    """Return the demo and every preset as (label, reference), with what a card says of it."""
    choices = [("Demo · tiny, needs no download and no GPU", "demo")]
    for model in models().values():
        facts = (model.name, count(model.num_parameters), model.license, marks.get(model.id, ""))
        choices.append((" · ".join(filter(None, facts)), model.id))
    return choices


def gpu_choices() -> Choices:
    """Return this machine and every preset as (label, preset id)."""
    here = local_gpu()
    choices = [(f"This machine · {here.name} · {memory(here.capacity_bytes)}", "local")]
    choices += [(f"{gpu.name} · {memory(gpu.capacity_bytes)}", gpu.id) for gpu in gpus().values()]
    return choices


def card_choices() -> Choices:
    """Return the GPUs of this machine as (label, place)."""
    cards = enumerate(machine.this_machine().gpus)
    return [(f"{place} · {card.short_name}", str(place)) for place, card in cards]


METHOD_CHOICES = [(method.title, method.id) for method in METHODS.values()]
STAGE_CHOICES = [(stage.title, stage.id) for stage in STAGES.values()]
PROFILES = [("Fastest that fits", "fastest"), ("Smallest memory", "smallest"), ("Custom", "custom")]
CUSTOM = {"allow_custom_value": True}
CONTROLS: tuple[Control, ...] = (
    Control("model", "Model", "model", model_choices, options=CUSTOM),
    Control("dataset", "Data", "data", lambda: [DEMO_DATA], options=CUSTOM),
    Control("method", "Method", "method", lambda: METHOD_CHOICES, gr.Radio),
    Control("stage", "Stage", "objective", lambda: STAGE_CHOICES),
    Control("gpu", "GPU", "gpu", gpu_choices),
    Control("profile", "Profile", "profile", lambda: PROFILES, gr.Radio),
    Control("num_train_epochs", "Epochs", "main"),
    Control("learning_rate", "Learning rate", "main"),
    Control("max_length", "Max length", "main"),
    Control("per_device_train_batch_size", "Batch size", "main"),
    Control("gradient_accumulation_steps", "Gradient accumulation", "main"),
    Control("lora_r", "LoRA rank", "main"),
    Control("max_steps", "Max steps", "job"),
    Control("seed", "Seed", "job"),
    Control("revision", "Revision", "job"),
    Control("dtype", "Precision", "job"),
    Control("adapter", "Continue from adapter", "job"),
    Control("device", "GPU index", "job"),
    Control("num_devices", "GPUs together", "job"),
    Control("parallelism", "Division among GPUs", "job"),
    Control("beta", "Beta", "stage"),
    Control("loss_type", "Preference loss", "stage"),
    Control("precompute_ref_log_probs", "Precompute reference", "stage"),
    Control("num_generations", "Answers per prompt", "stage"),
    Control("max_completion_length", "Max answer length", "stage"),
    Control("temperature", "Temperature", "stage"),
    Control("reward_functions", "Reward functions", "stage"),
    Control("reward_pattern", "Reward pattern", "stage"),
    Control("reward_model", "Reward model", "stage"),
    Control("eval_dataset", "Evaluation data", "rows"),
    Control("eval_fraction", "Evaluation share", "rows"),
    Control("packing", "Packing", "rows"),
    Control("assistant_only_loss", "Train on answers only", "rows"),
    Control("use_chat_template", "Put texts into the chat template", "rows"),
    Control("shuffle", "Shuffle", "rows"),
    Control("max_rows", "Max rows", "rows"),
    Control("max_lost_answers", "Max share of lost answers", "rows"),
    Control("mix", "More data files", "rows", options={"lines": 2, "max_lines": 6}),
    Control("dataset_sha256", "Dataset SHA-256", "rows"),
    Control("accept_unread", "Train without what is not read", "rows"),
    Control("lora_alpha", "LoRA alpha", "adapter"),
    Control("lora_dropout", "LoRA dropout", "adapter"),
    Control("target_modules", "Target modules", "adapter"),
    Control("init_lora_weights", "Adapter initialization", "adapter"),
    Control("use_dora", "DoRA", "adapter"),
    Control("use_rslora", "rsLoRA", "adapter"),
    Control("loraplus_lr_ratio", "LoRA+ ratio", "adapter"),
    Control("modules_to_save", "Modules trained in full", "adapter"),
    Control("num_trainable_layers", "Trainable last layers", "adapter"),
    Control("optim", "Optimizer", "optimizer"),
    Control("lr_scheduler_type", "Learning rate schedule", "optimizer"),
    Control("warmup_ratio", "Warmup ratio", "optimizer"),
    Control("warmup_steps", "Warmup steps", "optimizer"),
    Control("min_lr_rate", "Lowest share of learning rate", "optimizer"),
    Control("lr_power", "Power of polynomial", "optimizer"),
    Control("lr_decay_ratio", "Share of decay steps", "optimizer"),
    Control("lr_restart_step", "Restart schedule after step", "optimizer"),
    Control("weight_decay", "Weight decay", "optimizer"),
    Control("max_grad_norm", "Max gradient norm", "optimizer"),
    Control("neftune_noise_alpha", "NEFTune noise", "optimizer"),
    Control("label_smoothing_factor", "Label smoothing", "optimizer"),
    Control("gradient_checkpointing", "Gradient checkpointing", "memory"),
    Control("checkpoint_every_n_layers", "Checkpoint every n layers", "memory"),
    Control("activation_offloading", "Offload activations", "memory"),
    Control("attn_implementation", "Attention kernel", "memory"),
    Control("torch_compile", "Compile (torch.compile)", "memory"),
    Control("activation_memory_budget", "Activation memory budget", "memory"),
    Control("use_liger_kernel", "Liger kernels", "memory"),
    Control("bnb_4bit_quant_type", "4-bit data type", "memory"),
    Control("bnb_4bit_use_double_quant", "Double quantization", "memory"),
    Control("logging_steps", "Log every n steps", "logging"),
    Control("eval_steps", "Evaluate every n steps", "logging"),
    Control("save_steps", "Save every n steps", "logging"),
    Control("save_total_limit", "Checkpoints to keep", "logging"),
    Control("keep_best", "Keep the best by", "logging", best_choices, options=CUSTOM),
    Control("early_stopping_patience", "Stop after n worse evaluations", "logging"),
    Control("early_stopping_threshold", "Improvement that counts", "logging"),
    Control("sample_steps", "Sample every n steps", "logging"),
    Control("stop_when_diverged", "Stop on divergence", "logging"),
    Control("halve_batch_on_oom", "Halve batch when out of memory", "logging"),
    Control("num_samples", "Sample prompts", "logging"),
    Control("check_steps", "Check every n steps", "logging"),
    Control("check_suites", "Suites to check", "logging"),
)

LABELS: Mapping[str, str] = {control.field: control.label for control in CONTROLS}
"""Field -> label on the page."""
PLACE_LABELS: Mapping[str, str] = {
    "on": "Where",
    "address": "Address of the dashboard",
    "partition": "Partition",
    "time": "Time limit",
    "gres": "Devices of each node",
    "account": "Account",
    "nodes": "Nodes",
}
"""Field of a placement -> label on the page."""
ADVANCED: Mapping[str, str] = {
    "job": "Job",
    "rows": "Data",
    "adapter": "Adapter",
    "optimizer": "Optimizer",
    "memory": "Memory and speed",
    "logging": "Logging and checkpoints",
}
"""Group -> heading under Advanced, in the order of the page."""


def in_words(error: TailorError) -> str:
    """Return the problems under the labels of the page."""
    labels = {**LABELS, **PLACE_LABELS}
    return "; ".join(
        f"{labels.get(each.field, each.field)}: {each.problem}; {each.fix}"
        for each in error.problems
    )
