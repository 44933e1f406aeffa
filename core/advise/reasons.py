"""Reasons for the fields of a plan: one sentence each, with the numbers that decided."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from core.advise.case import COMPILE_SECONDS, Case
from core.advise.changes import (
    MAX_MEAN_SHARE_TO_PACK,
    batch_fields,
    batch_sizes,
    compile_obstacle,
    packed_batches,
)
from core.memory.program import precision_of
from core.speed.kernels import needs_eager
from core.speed.rows import mean_tokens, times_read
from core.training.contract.stages import STAGES

GIB = 2**30
KEEP_ALL = {
    "gradient_checkpointing": False,
    "activation_offloading": False,
    "activation_memory_budget": 1.0,
}
RECOMPUTE_ALL = {"gradient_checkpointing": True, "checkpoint_every_n_layers": 1}
MANY_TIMES = 3
"""Ratio of times from which it is easier to read than a share in percent."""


def reasons(chosen: Case) -> dict[str, str]:
    """Return field -> reason, for the fields that matter for the planned job."""
    sentences = {field: explain(chosen) for field, explain in REASONS.items()}
    return {field: sentence for field, sentence in sentences.items() if sentence}


def _time_with(chosen: Case, values: Mapping[str, object]) -> str:
    """Return the forecast time with other values, compared with the planned time."""
    other = chosen.changed(values) or chosen
    ratio = other.seconds_per_token() / chosen.seconds_per_token()
    if ratio >= MANY_TIMES:
        return f"{ratio:.0f} times as long"
    return f"{100 * ratio:.0f} % of the time"


def _number(count: float, noun: str) -> str:
    """Return "1 row" or "2 rows"."""
    if count == 1:
        return f"{count:,.9g} {noun}"
    return f"{count:,.9g} {noun}s"


def _duration(hours: float) -> str:
    if hours < 1 / 40:
        return f"{3600 * hours:.2g} s"
    if hours < 1.5:
        return f"{60 * hours:.0f} min"
    return f"{hours:.1f} h"


def _rows_of_step(case: Case) -> str:
    """Return "16 rows", or "16 rows of each device", which share an optimizer step."""
    job = case.job
    rows = _number(job.effective_batch_size, "packed row" if job.packing else "row")
    return f"{rows} of each device" if job.num_devices > 1 else rows


def used(case: Case) -> str:
    """Return the estimate, such as "21.4 of 24.0 GiB"."""
    memory = case.memory
    return f"{memory.total_bytes / GIB:.1f} of {memory.capacity_bytes / GIB:.1f} GiB"


def _dtype(case: Case) -> str:
    card = "A processor" if case.is_on_cpu else case.gpu.name
    num_bytes = precision_of(case.job, case.gpu).weight_itemsize
    return f"{card} trains this in {case.job.dtype}: {num_bytes} bytes per weight."


def _packing(case: Case) -> str:
    if not STAGES[case.job.stage].supports_packing:
        return ""
    mean = mean_tokens(case.job, case.rows)
    share = f"{100 * mean / case.job.max_length:.0f} % of max_length"
    rows = f"Rows count as {_number(round(mean), 'token')} on average, {share}"
    if case.job.packing:
        return f"{rows}: packed."
    packed = packed_batches(case)
    if not packed:
        in_one, step = case.job.max_length / mean, case.job.effective_batch_size
        is_short = mean < MAX_MEAN_SHARE_TO_PACK * case.job.max_length
        if is_short and in_one > step:
            held = f"{in_one:.0f}" if in_one >= 10 else f"{in_one:.1f}"
            sees = f"a step sees {_rows_of_step(case)}"
            return f"{rows}: not packed, as one would hold {held}, and {sees}."
        return f"{rows}: not packed."
    return f"{rows}; packed, the run would take {_time_with(case, packed[0])}."


def _attention(case: Case) -> str:
    job = case.job
    num_tokens = job.per_device_train_batch_size * job.max_length
    window = case.shape.sliding_window
    if needs_eager(case.shape):
        heads = case.shape.num_attention_heads
        return f"Only eager attention computes the capped scores or sinks of {heads} heads."
    if job.attn_implementation == "varlen":
        return f"Packed rows, {num_tokens:,} tokens at once, need no mask."
    if job.packing:
        return f"Packed rows, {num_tokens:,} tokens at once, need a mask here, which costs time."
    if STAGES[job.stage].generates and job.per_device_train_batch_size > 1:
        size = job.per_device_train_batch_size
        return f"{size} rows at once are padded before their prompts and need a mask."
    if window and window <= job.max_length:
        return f"Rows need a mask only in layers that attend to at most {window:,} tokens."
    return f"Rows of up to {job.max_length:,} tokens need no mask."


def _batch(case: Case) -> str:
    job = case.job
    size, num_rows = job.per_device_train_batch_size, job.effective_batch_size
    sizes = batch_sizes(job, num_rows)
    others = [each for each in sizes if each < size] or [each for each in sizes if each > size]
    if not others:
        return f"An optimizer step sees {_rows_of_step(case)}."
    time = _time_with(case, batch_fields(min(others), num_rows))
    if min(others) > size:
        return f"Less memory than {min(others)} at once, which would take {time}."
    return f"{min(others)} at once instead of {size} would take {time}."


def _accumulation(case: Case) -> str:
    size = case.job.per_device_train_batch_size
    return f"An optimizer step sees {_rows_of_step(case)}, {size} at once."


def _checkpointing(case: Case) -> str:
    if case.job.gradient_checkpointing:
        time = _time_with(case, KEEP_ALL)
        return f"Saves memory, {used(case)} used; keeping activations would take {time}."
    time = _time_with(case, RECOMPUTE_ALL)
    return f"{used(case)} used; recomputing activations would take {time}."


def _every_n_layers(case: Case) -> str:
    num_layers, num_recomputed = case.shape.num_hidden_layers, 0
    if case.job.gradient_checkpointing:
        num_recomputed = -(-num_layers // case.job.checkpoint_every_n_layers)
    return f"{num_recomputed} of {_number(num_layers, 'layer')} are recomputed as a whole."


def _offloading(case: Case) -> str:
    is_on_host = case.job.activation_offloading or case.is_on_cpu
    place = "in main memory" if is_on_host else "on the card"
    return f"With activations {place}, the job needs {used(case)}."


def _compile(case: Case) -> str:
    obstacle = compile_obstacle(case)
    if obstacle:
        return f"Not compiled: {obstacle}."
    cost = f"Compiling takes some {COMPILE_SECONDS[case.job.base_bits]:.0f} s"
    hours = case.assumed_speed().hours
    if hours is None:
        return f"{cost}, which a run of unknown length may not earn back."
    if case.job.torch_compile:
        values = {**KEEP_ALL, "torch_compile": False}
        if case.job.activation_memory_budget < 1:  # which only compiled layers have
            values.update(RECOMPUTE_ALL)
        time = _time_with(case, values)
        return f"{cost}; without it, the run of {_duration(hours)} would take {time}."
    time = _time_with(case, {"torch_compile": True})
    return f"{cost}; with it, the run of {_duration(hours)} would take {time}."


def _budget(case: Case) -> str:
    budget = case.job.activation_memory_budget
    if budget == 1 or not case.job.torch_compile or case.job.gradient_checkpointing:
        return "Layers that are not checkpointed keep 100 % of their activations."
    time = _time_with(case, {"activation_memory_budget": 1.0})
    return f"Layers keep {100 * budget:.0f} % of their activations; keeping all would take {time}."


def _optimizer(case: Case) -> str:
    sizes = {part.name: part.bytes / GIB for part in case.memory.components}
    states = f"{sizes.get('optimizer_states', 0):.2f} GiB"
    sentences = {
        "adamw_torch_fused": f"AdamW in one kernel; its states take {states}.",
        "adamw_8bit": f"8-bit states, stored less exactly, take {states}: full ones do not fit.",
        "paged_adamw_8bit": f"8-bit states, stored less exactly, take {states} that can be paged.",
    }
    return sentences.get(case.job.optim, "")


def _precompute(case: Case) -> str:
    job = case.job
    if "precompute_ref_log_probs" not in STAGES[job.stage].fields:
        return ""
    if not job.trains_adapter:
        copy_gib = case.shape.num_parameters * precision_of(job, case.gpu).weight_itemsize / GIB
        return f"Asked in every step, the reference model is a second copy of {copy_gib:.1f} GiB."
    times = times_read(job, case.rows)
    if times is None:
        return f"How often {_number(job.max_steps, 'step')} read each row is unknown."
    read = _number(round(times, 2), "time")
    return f"Training reads each row {read}; asked first, the reference model reads it once."


REASONS: Mapping[str, Callable[[Case], str]] = MappingProxyType(
    {
        "dtype": _dtype,
        "packing": _packing,
        "attn_implementation": _attention,
        "per_device_train_batch_size": _batch,
        "gradient_accumulation_steps": _accumulation,
        "gradient_checkpointing": _checkpointing,
        "checkpoint_every_n_layers": _every_n_layers,
        "activation_offloading": _offloading,
        "torch_compile": _compile,
        "activation_memory_budget": _budget,
        "optim": _optimizer,
        "precompute_ref_log_probs": _precompute,
    }
)
PLANNED_FIELDS = frozenset(REASONS)
"""JobSpec fields that a plan may choose."""
