"""REASONS: why each field of a plan is as it is, in one sentence with the number that decided it.

A field stands here once it may be planned; an empty sentence says that it does not matter for the job.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from core.advise import Case
from core.advise.case import batch_splits, packed_splits
from core.advise.search import (
    CHECKPOINT_ALL,
    COMPILE_SECONDS,
    LEAST_GAIN,
    compile_obstacle,
    forecast,
    seconds_per_token,
)
from core.memory.program import precision_of
from core.speed.kernels import needs_eager
from core.speed.passes import passes_of
from core.speed.rows import sorts_rows, times_read
from core.training.contract.stages import STAGES

GIB = 2**30


@dataclass(frozen=True)
class Outcome:
    """A job as it was asked for, and the way that was chosen."""

    asked: Case
    chosen: Case

    def times(self, **change: object) -> float:
        """Time with a change / time as chosen, by forecast; 1 if the change is impossible."""
        other = self.chosen.changed(change)
        return seconds_per_token(other) / seconds_per_token(self.chosen) if other else 1.0

    @property
    def used(self) -> str:
        """21.4 of 24.0"""
        memory = self.chosen.memory
        return f"{memory.total_bytes / GIB:.1f} of {memory.capacity_bytes / GIB:.1f}"

    @property
    def keeps_a_share(self) -> bool:
        """True if compiled layers compute again what they may not keep."""
        job = self.chosen.job
        return (
            job.torch_compile
            and not job.gradient_checkpointing
            and job.activation_memory_budget < 1
        )

    @property
    def mean_tokens(self) -> float | None:
        return self.chosen.rows.mean_tokens if self.chosen.rows else None


def _capability(case: Case) -> str:
    return ".".join(map(str, case.gpu.compute_capability))


def _percent(share: float) -> str:
    return f"{100 * max(0.0, share):.0f} %"


def _number(count: float, noun: str) -> str:
    """1 row, 2 rows"""
    return f"{count:,.9g} {noun}{'s' * (count != 1)}"


def _dtype(outcome: Outcome) -> str:
    job, gpu = outcome.chosen.job, outcome.chosen.gpu
    if outcome.chosen.is_on_cpu:
        return "A processor computes in float32, 4 bytes a weight."
    if job.dtype == "bfloat16":
        return f"{gpu.name} computes in bfloat16: 2 bytes a weight."
    if job.dtype == "float16":
        return f"{gpu.name} (compute capability {_capability(outcome.chosen)}) has no bfloat16: float16, 2 bytes a weight."
    return f"{gpu.name} has no bfloat16, and weights that train lose too much in float16: 4 bytes a weight."


def _packing(outcome: Outcome) -> str:
    job, mean, before = outcome.chosen.job, outcome.mean_tokens, outcome.asked.job
    if not STAGES[job.stage].supports_packing:
        return ""
    if mean is None:
        return f"How long the rows are is not known, so each counts as {job.max_length:,} tokens."
    joined = f"joined to {job.max_length:,}"
    if before.packing or not outcome.asked.can_pack:
        share = _percent(min(1.0, mean / job.max_length))
        return (
            f"Rows of {_number(round(mean), 'token')} are {joined}."
            if job.packing
            else f"Rows fill {share} of max_length as it is."
        )
    splits = packed_splits(outcome.asked)
    if not splits:
        tokens = before.effective_batch_size * mean
        return f"Rows stay apart: those of a step, {tokens:,.0f} tokens in all, do not come to full ones {joined}."
    after = outcome.asked.changed(splits[0])
    seen = after.job.effective_batch_size * job.max_length / mean if after else 0
    seen_by_step = f"a step sees about {seen:.0f} of them, not {before.effective_batch_size}"
    if job.packing:
        return (
            f"Rows of {_number(round(mean), 'token')}, {joined}, leave no padding; {seen_by_step}."
        )
    return f"Rows stay apart: {joined} tokens, {seen_by_step}."


def _attention(outcome: Outcome) -> str:
    case, job = outcome.chosen, outcome.chosen.job
    if job.attn_implementation == "flex_attention":
        return "FlexAttention builds a kernel for what each token sees: without a mask, without storing scores."
    if needs_eager(case.shape):
        what = "caps" if case.shape.attn_logit_softcapping else "adds sinks to"
        heads = case.shape.num_attention_heads
        return f"The model {what} the scores of its {heads} heads, which only eager and flex_attention can do."
    if job.attn_implementation == "varlen":
        tokens = job.per_device_train_batch_size * job.max_length
        length = (
            _number(round(outcome.mean_tokens), "token")
            if outcome.mean_tokens
            else "their own tokens"
        )
        return f"Joined rows are told apart without a mask: tokens look back over {length}, not {tokens:,}."
    if job.packing:
        has = "a processor has none" if case.is_on_cpu else f"the card has {_capability(case)}"
        return f"Joined rows need a mask: varlen asks for compute capability 8.0, {has}."
    if STAGES[job.stage].generates and job.per_device_train_batch_size > 1:
        return f"{job.per_device_train_batch_size} rows at once are padded in front of their prompts, and need a mask."
    window = case.shape.sliding_window
    if window and window <= job.max_length:
        return f"Rows that are not joined need a mask only in layers that look back at most {window:,} tokens."
    return f"Rows of up to {job.max_length:,} tokens that are not joined need no mask."


def _batch(outcome: Outcome) -> str:
    job = outcome.chosen.job
    size, rows = job.per_device_train_batch_size, job.effective_batch_size
    splits = {
        int(str(split["per_device_train_batch_size"])): split for split in batch_splits(job, rows)
    }
    least, more = (
        min(splits, default=size),
        min((each for each in splits if each > size), default=0),
    )
    if size > least:
        saved = 1 - 1 / outcome.times(**splits[least])
        others = "one by one" if least == 1 else f"{least} at a time"
        return f"{size} rows at once take {_percent(saved)} less time than {others}."
    if not more:
        return f"An optimizer step sees {_number(rows, 'row')}."
    saved = 1 - outcome.times(**splits[more])
    at_once, instead = (
        f"{_number(size, 'row')} at once",
        f"{more} would save {_percent(saved)} of the time",
    )
    if saved < LEAST_GAIN:
        return f"The {'processor' if outcome.chosen.is_on_cpu else 'card'} is busy with {at_once}: {instead}."
    return f"The least memory is taken by {at_once}: {instead}."


def _accumulation(outcome: Outcome) -> str:
    job, before = outcome.chosen.job, outcome.asked.job
    seen = _number(job.effective_batch_size, "joined row" if job.packing else "row")
    sees = "still sees" if job.packing == before.packing else "sees"
    alike = ", of like length" if sorts_rows(job) and not job.packing else ""
    return f"An optimizer step {sees} {seen}, {job.per_device_train_batch_size} at once{alike}."


def _checkpointing(outcome: Outcome) -> str:
    memory, job = outcome.chosen.memory, outcome.chosen.job
    if job.gradient_checkpointing:
        saved = 1 - outcome.times(gradient_checkpointing=False, activation_offloading=False)
        return f"Computing activations again takes {_percent(saved)} of the time and brings it to {outcome.used} GiB."
    if outcome.keeps_a_share:
        cost = outcome.times(**CHECKPOINT_ALL) - 1
        return f"Compiled layers keep a share of their activations: to keep none would take {_percent(cost)} more time."
    free_gib, cost = (
        (memory.capacity_bytes - memory.total_bytes) / GIB,
        outcome.times(**CHECKPOINT_ALL) - 1,
    )
    room = f"{free_gib:.1f} GiB of {memory.capacity_bytes / GIB:.0f} stay free"
    return f"Activations fit: {room}, and computing them again would cost {_percent(cost)} of the time."


def _every(outcome: Outcome) -> str:
    job, num_layers = outcome.chosen.job, outcome.chosen.shape.num_hidden_layers
    number = job.checkpoint_every_n_layers
    if not job.gradient_checkpointing:
        return f"Of {_number(num_layers, 'layer')} none is computed again as a whole."
    if number == 1:
        return f"Of {_number(num_layers, 'layer')} the input is kept, and nothing else."
    saved = 1 - 1 / outcome.times(checkpoint_every_n_layers=1)
    layers = f"{-(-num_layers // number)} of {_number(num_layers, 'layer')}"
    return f"To compute {layers} again is enough, and saves {_percent(saved)} of the time."


def _offloading(outcome: Outcome) -> str:
    case = outcome.chosen
    if not case.job.activation_offloading:
        where = "are in main memory as it is" if case.is_on_cpu else "need not leave the card"
        return f"Activations {where}: {outcome.used} GiB are used."
    without = case.changed({"activation_offloading": False})
    needed_gib = without.memory.total_bytes / GIB if without else 0.0
    return f"Kept on the card, activations would take it to {needed_gib:.1f} GiB: they wait in main memory."


def _compile(outcome: Outcome) -> str:
    case = outcome.chosen
    if obstacle := compile_obstacle(case):
        return f"Not compiled: {obstacle}."
    cost, hours = (
        f"some {COMPILE_SECONDS[case.job.base_bits]:.0f} s of compiling",
        forecast(case).hours,
    )
    if hours is None:
        return f"How long the run takes is not known: {cost} may not pay."
    run = f"The run takes {_duration(hours)}"
    if case.job.torch_compile:
        otherwise = (
            CHECKPOINT_ALL if outcome.keeps_a_share else {}
        )  # a budget is for compiled layers
        saved = 1 - 1 / outcome.times(torch_compile=False, **otherwise)
        return f"{run}: compiled layers save {_percent(saved)}, {cost} deducted."
    if case.job.activation_offloading:
        return f"{run}: layers whose activations wait in main memory are not compiled."
    saved = 1 - outcome.times(torch_compile=True)
    if saved < LEAST_GAIN:
        return f"{run}: {cost} would not pay."
    return (
        f"{run}: compiled layers would save {_percent(saved)} of it, but need not take less memory."
    )


def _budget(outcome: Outcome) -> str:
    job = outcome.chosen.job
    if not job.torch_compile or job.gradient_checkpointing:
        return "Only compiled layers that are not checkpointed can keep less than 100 %."
    if not outcome.keeps_a_share:
        return "All that a layer saves is kept, 100 %."
    cost = 1 - outcome.times(activation_memory_budget=1.0)
    kept = f"{_percent(job.activation_memory_budget)} of their activations"
    if passes_of(job, outcome.chosen.shape).recompute == 0:
        kept += ", and do no product twice"
    used, spent = f"{outcome.used} GiB", f"{_percent(cost)} of the time"
    return f"Layers keep at most {kept}: that brings it to {used} and takes {spent}."


def _duration(hours: float) -> str:
    if hours < 1 / 40:
        return f"{3600 * hours:.2g} s"
    return f"{hours:.1f} h" if hours >= 1.5 else f"{60 * hours:.0f} min"


def _optimizer(outcome: Outcome) -> str:
    case = outcome.chosen
    states = {part.name: part.bytes for part in case.memory.components}.get("optimizer_states", 0)
    size = f"{states / GIB:.1f} GiB" if states >= GIB / 10 else f"{states / 2**20:.0f} MiB"
    return {
        "adamw_torch_fused": f"AdamW in one kernel; its states take {size}.",
        "adamw_8bit": f"States in 8 bits, stored less exactly, take {size}: whole ones would not fit.",
        "paged_adamw_8bit": f"States in 8 bits, stored less exactly, take {size} and may leave the card.",
    }.get(case.job.optim, "")


def _precompute(outcome: Outcome) -> str:
    case, job = outcome.chosen, outcome.chosen.job
    if "precompute_ref_log_probs" not in STAGES[job.stage].fields:
        return ""
    times = times_read(job, case.rows)
    if job.precompute_ref_log_probs and not job.trains_adapter:
        copy_gib = case.shape.num_parameters * precision_of(job, case.gpu).weight_itemsize / GIB
        return f"The reference model reads the rows beforehand, so that no second copy ({copy_gib:.1f} GiB) is kept."
    if job.precompute_ref_log_probs:
        return f"The reference model reads the rows once instead of {_number(round(times or 1, 2), 'time')}."
    span = (
        _number(job.max_steps, "step")
        if job.max_steps > 0
        else _number(job.num_train_epochs, "epoch")
    )
    if times is None:
        return f"How often each row is met in {span} is not known: the reference model is asked as it is."
    return (
        f"No row is read twice in {span}: to ask the reference model beforehand would save nothing."
    )


REASONS: Mapping[str, Callable[[Outcome], str]] = MappingProxyType(
    {
        "dtype": _dtype,
        "packing": _packing,
        "attn_implementation": _attention,
        "per_device_train_batch_size": _batch,
        "gradient_accumulation_steps": _accumulation,
        "gradient_checkpointing": _checkpointing,
        "checkpoint_every_n_layers": _every,
        "activation_offloading": _offloading,
        "torch_compile": _compile,
        "activation_memory_budget": _budget,
        "optim": _optimizer,
        "precompute_ref_log_probs": _precompute,
    }
)
