"""CHANGES: one table of the changes of a job that save memory or time. Ranks and plans nothing."""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from core.advise.case import COMPILE_SECONDS, Case, FieldValues, Harm
from core.job import JobSpec
from core.speed.kernels import can_use_varlen, needs_eager
from core.training.contract.stages import STAGES

MIN_RANK = 8
MIN_LENGTH = 256
MIN_COMPLETION = 64
MAX_TOKENS_AT_ONCE = 65_536
"""Four times what the fastest card needs to be busy."""
MAX_MEAN_SHARE_TO_PACK = 0.7
"""Rows that fill less of max_length than this are worth packing; others leave little padding."""
MAX_STEP_CHANGE = 1 / 3
"""Share by which packing may change the rows of a step: one and a half become one or two."""
MIN_COMPILE_CAPABILITY = (8, 0)
SECONDARY = {"checkpoint_every_n_layers", "activation_memory_budget", "attn_implementation"}
"""Details of a change: where the user has set one, the rest of the change applies without it."""

Variants = Callable[[Case], Sequence[FieldValues]]
Saves = Literal["memory", "time"]


@dataclass(frozen=True)
class Change:
    """One way to change a job. Its texts may name fields of the changed job: `{job.lora_r}`."""

    title: str
    why: str
    variants: Variants
    """Field values to set, from most to least memory; none where the change does not apply."""
    harm: Harm = Harm.NONE
    saves: Saves = "memory"

    def cases(self, case: Case, set_by_user: frozenset[str] = frozenset()) -> Iterator[Case]:
        """Yield the case after each variant that the job allows and the user's values permit."""
        dropped = set_by_user & SECONDARY
        for variant in self.variants(case):
            values = {name: value for name, value in variant.items() if name not in dropped}
            kept = set_by_user & values.keys()
            if all(getattr(case.job, name) == values[name] for name in kept):
                changed = case.changed(values)
                if changed:
                    yield changed

    def fitting_case(self, case: Case) -> Case:
        """Return the case after the first variant that fits, else after the last one.

        Returns the case unchanged if no variant applies.
        """
        cases = list(self.cases(case))
        if not cases:
            return case
        first = bisect_left(cases, True, key=lambda each: each.fits)
        return cases[min(first, len(cases) - 1)]


def _set(applies: Callable[[Case], bool], **values: object) -> Variants:
    """Return one variant: these values, where they apply."""
    return lambda case: [values] if applies(case) else []


def _replace(field: str, old: tuple[object, ...], new: object) -> Variants:
    """Return one variant: a new value of a field that has one of the old ones."""
    return _set(lambda case: getattr(case.job, field) in old, **{field: new})


def _lower(field: str, *values: float) -> Variants:
    """Return a variant for each of these values that is below the field's."""
    return lambda case: [{field: each} for each in values if each < getattr(case.job, field)]


def _power_of_two(field: str, smallest: int) -> Variants:
    """Return a variant for each power of two that is below the field's value."""
    return _lower(field, *(2**power for power in range(30, 0, -1) if 2**power >= smallest))


def _checkpoint(*every_n_layers: int) -> Variants:
    """Return variants that checkpoint one layer of n, where fewer are checkpointed now."""

    def variants(case: Case) -> list[FieldValues]:
        now = case.shape.num_hidden_layers + 1
        if case.job.gradient_checkpointing:
            now = case.job.checkpoint_every_n_layers
        numbers = [n for n in every_n_layers if n < now]
        return [{"gradient_checkpointing": True, "checkpoint_every_n_layers": n} for n in numbers]

    return variants


def batch_sizes(job: JobSpec, rows_per_step: int) -> list[int]:
    """Return the batches into which the rows of an optimizer step can be split, largest first."""
    largest = min(rows_per_step, max(1, MAX_TOKENS_AT_ONCE // job.max_length))
    sizes = range(largest, STAGES[job.stage].min_batch_size - 1, -1)
    return [size for size in sizes if rows_per_step % size == 0]


def batch_fields(size: int, rows_per_step: int) -> dict[str, object]:
    """Return the fields that split the rows of an optimizer step into batches of one size."""
    return {
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": rows_per_step // size,
    }


def _smaller_batches(case: Case) -> list[FieldValues]:
    job, num_rows = case.job, case.job.effective_batch_size
    sizes = batch_sizes(job, num_rows)
    return [
        batch_fields(size, num_rows) for size in sizes if size < job.per_device_train_batch_size
    ]


def packed_batches(case: Case) -> list[FieldValues]:
    """Return the ways to pack short rows and still see about as many in an optimizer step.

    Empty where packing does not pay, or where one packed row already holds too many.
    """
    job, mean = case.job, case.rows and case.rows.mean_tokens
    if job.packing or not mean or not STAGES[job.stage].supports_packing:
        return []
    packed_rows = job.effective_batch_size * mean / job.max_length
    num_rows = round(packed_rows)
    is_step_kept = abs(num_rows / packed_rows - 1) <= MAX_STEP_CHANGE
    if mean >= MAX_MEAN_SHARE_TO_PACK * job.max_length or not is_step_kept:
        return []
    values: dict[str, object] = {"packing": True}
    if job.attn_implementation == "sdpa" and can_use_varlen(case.shape, case.gpu):
        values["attn_implementation"] = "varlen"
    return [{**values, **batch_fields(size, num_rows)} for size in batch_sizes(job, num_rows)]


def attention_for(case: Case) -> str:
    """Return the attention kernel for the rows of this job on its card."""
    if needs_eager(case.shape):
        return "eager"
    if case.job.packing and can_use_varlen(case.shape, case.gpu):
        return "varlen"
    return "sdpa"


def compile_obstacle(case: Case) -> str:
    """Return why the layers of a job cannot be compiled, or "" if they can."""
    major, minor = case.gpu.compute_capability
    if case.is_on_cpu:
        return "the 1 to 2 minutes it takes seldom pay on a processor"
    if case.gpu.lacks_for_compiling:
        return case.gpu.lacks_for_compiling
    if (major, minor) < MIN_COMPILE_CAPABILITY:
        return f"compute capability {major}.{minor} is below 8.0"
    if case.job.base_bits not in COMPILE_SECONDS:
        return f"a base in {case.job.base_bits} bits cannot be compiled"
    if case.shape.num_experts > 1:
        return f"tokens are routed to different ones of {case.shape.num_experts} experts"
    if STAGES[case.job.stage].generates:
        return "answers grow by 1 token at a time, each a new length"
    return ""


def _can_compile(case: Case) -> bool:
    """Return True if compiling works and the run's length, which has to pay for it, is known."""
    job = case.job
    if job.torch_compile or job.activation_offloading or compile_obstacle(case):
        return False
    return case.assumed_speed().num_steps is not None


def keeps_reference(case: Case) -> bool:
    """Return True if a second copy of the weights is on the card as the reference model."""
    job = case.job
    can_precompute = "precompute_ref_log_probs" in STAGES[job.stage].fields
    return can_precompute and not job.precompute_ref_log_probs and not job.trains_adapter


def _of_new_adapter(variants: Variants) -> Variants:
    """Return variants for a new adapter: one that is continued keeps its own settings."""
    return lambda case: [] if case.job.adapter else variants(case)


def _lower_ranks(case: Case) -> list[FieldValues]:
    """Return variants with half the rank, a quarter ...; alpha follows, so the scale stays."""
    rank, alpha = case.job.lora_r, case.job.lora_alpha
    if not case.job.trains_adapter or case.job.adapter:
        return []
    divisors = [2**n for n in range(1, (rank // MIN_RANK).bit_length())]
    return [{"lora_r": rank // each, "lora_alpha": alpha / each} for each in divisors]


def _shorter_lengths(case: Case) -> list[FieldValues]:
    """Return powers of two, and the length that 95 % of the rows keep to, rounded up to 64."""
    lengths = {2**power for power in range(MIN_LENGTH.bit_length() - 1, 31)}
    if case.rows and case.rows.p95_tokens:
        lengths.add(-(-case.rows.p95_tokens // 64) * 64)
    shorter = [length for length in lengths if length < case.job.max_length]
    return [{"max_length": length} for length in sorted(shorter, reverse=True)]


def _to_method(method: str, *from_methods: str) -> Variants:
    """Return the variant with another method. Fields at the old default move to the new one."""

    def variants(case: Case) -> list[FieldValues]:
        job = case.job
        if job.method not in from_methods:
            return []
        old = JobSpec.parse({"stage": job.stage, "method": job.method}).model_dump()
        new = JobSpec.parse({"stage": job.stage, "method": method}).model_dump()
        names = [name for name in new if getattr(job, name) == old[name] != new[name]]
        return [{name: new[name] for name in names}]

    return variants


KEEP_SHARE = Change(
    "Keep {job.activation_memory_budget:.0%} of activations",
    "Compiled layers recompute the cheapest of their activations in the backward pass.",
    _lower("activation_memory_budget", 0.9, 0.5, 0.3, 0.1),
)
CHECKPOINT_SOME = Change(
    "Checkpoint one layer of {job.checkpoint_every_n_layers}",
    "One layer of {job.checkpoint_every_n_layers} recomputes its activations.",
    _checkpoint(4, 3, 2),
)
CHECKPOINT_ALL = Change(
    "Checkpoint activations",
    "Activations are recomputed in the backward pass instead of being kept.",
    _checkpoint(1),
)
SMALLER_BATCH = Change(
    "Batch {job.per_device_train_batch_size} × {job.gradient_accumulation_steps} accumulation",
    "Fewer rows at once: an optimizer step still sees {job.effective_batch_size} rows.",
    _smaller_batches,
)
PACK = Change(
    "Pack rows to {job.max_length:,} tokens",
    "Short rows are joined, so that nothing is padding.",
    packed_batches,
    Harm.SLIGHT,
    saves="time",
)
COMPILE = Change(
    "Compile layers",
    "Compiled layers are faster.",
    _set(_can_compile, torch_compile=True),
    saves="time",
)
OFFLOAD = Change(
    "Offload activations",
    "Activations wait in main memory for the backward pass.",
    _set(lambda case: not case.is_on_cpu, activation_offloading=True),
)
UNQUANTIZE = Change(
    "16-bit base",
    "The base fits in 16 bits, so it need not be unpacked for every matrix product.",
    _to_method("lora", "qlora", "lora-8bit"),
    saves="time",
)

CHANGES = (
    KEEP_SHARE,
    CHECKPOINT_SOME,
    CHECKPOINT_ALL,
    SMALLER_BATCH,
    COMPILE,
    UNQUANTIZE,
    Change(
        "SDPA attention",
        "Attention scores, which grow with the square of the length, are not written to memory.",
        _replace("attn_implementation", ("eager",), "sdpa"),
    ),
    Change(
        "Varlen attention",
        "Packed rows need no mask, which grows with the square of the length.",
        _set(
            lambda case: case.job.packing and attention_for(case) == "varlen",
            attn_implementation="varlen",
        ),
    ),
    Change(
        "Fused optimizer",
        "The same AdamW without its temporary copy of everything that trains.",
        _replace("optim", ("adamw_torch",), "adamw_torch_fused"),
    ),
    Change(
        "Ask the reference first",
        "The reference model reads the data once before training, then leaves the card.",
        _set(keeps_reference, precompute_ref_log_probs=True),
    ),
    OFFLOAD,
    PACK,
    Change(
        "8-bit optimizer",
        "AdamW keeps its states in 8 bits instead of 16 or 32.",
        _replace("optim", ("adamw_torch", "adamw_torch_fused", "paged_adamw_32bit"), "adamw_8bit"),
        Harm.SLIGHT,
    ),
    Change(
        "16-bit weights",
        "Weights are loaded in 16 bits instead of 32.",
        _replace("dtype", ("float32",), "auto"),
        Harm.SLIGHT,
    ),
    Change(
        "Double quantisation",
        "The scales of the 4-bit base are stored in 8 bits too.",
        _replace("bnb_4bit_use_double_quant", (False,), True),
        Harm.SLIGHT,
    ),
    Change(
        "LoRA instead of full",
        "Only small adapters train; the rest needs no gradients and no optimizer states.",
        _to_method("lora", "full"),
        Harm.REAL,
    ),
    Change(
        "LoRA instead of last layers",
        "Only small adapters train; whole layers need no gradients and no optimizer states.",
        _to_method("lora", "freeze"),
        Harm.REAL,
    ),
    Change(
        "QLoRA (4-bit base)",
        "Adapters train over a base that is stored in 4 bits.",
        _to_method("qlora", "full", "freeze", "lora", "lora-8bit"),
        Harm.REAL,
    ),
    Change(
        "No adapter dropout",
        "Without dropout, no masks and no copies of the adapter's inputs are kept.",
        _of_new_adapter(_lower("lora_dropout", 0.0)),
        Harm.REAL,
    ),
    Change(
        "LoRA instead of DoRA",
        "The norm of every adapted weight is no longer computed in each pass.",
        _of_new_adapter(_replace("use_dora", (True,), False)),
        Harm.REAL,
    ),
    Change(
        "Rank {job.lora_r}",
        "A smaller adapter takes less memory and learns less.",
        _lower_ranks,
        Harm.REAL,
    ),
    Change(
        "Answers of {job.max_completion_length} tokens",
        "The model draws shorter answers and trains on them.",
        _power_of_two("max_completion_length", MIN_COMPLETION),
        Harm.REAL,
    ),
    Change(
        "{job.num_generations} answers a prompt",
        "Fewer answers are compared with each other.",
        _power_of_two("num_generations", 2),
        Harm.REAL,
    ),
    Change(
        "Max length {job.max_length:,}",
        "Rows of more than {job.max_length:,} tokens are cut there.",
        _shorter_lengths,
        Harm.REAL,
    ),
)
"""Least harmful first."""

MEMORY_SAVERS = tuple(change for change in CHANGES if change.saves == "memory")
