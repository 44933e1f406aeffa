"""REMEDIES and IDEAS: the kinds of change that save memory, and those that turn spare memory into speed."""

from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from core.advise.case import LARGEST_BATCH, Case, Change, Harm, batch_splits, packed_splits
from core.job import JobSpec
from core.speed.kernels import can_use_varlen
from core.training.contract.methods import METHODS
from core.training.contract.stages import STAGES, defaults_of

LEAST_LENGTH, LEAST_RANK, LEAST_COMPLETION, LEAST_GENERATIONS = 256, 8, 64, 2
EVERY_N = (4, 3, 2)
"""With checkpointing, one layer of so many is computed again; by falling memory."""

Variants = Callable[[Case], Iterable[Change]]
"""The forms that a change can take for a case, by falling memory; none where it does not apply."""


@dataclass(frozen=True)
class Remedy:
    """One kind of change. Its texts may name fields of the changed job: `{job.lora_r}`."""

    title: str
    why: str
    variants: Variants
    harm: Harm = Harm.NONE

    def fitting_cases(self, case: Case) -> list[Case]:
        """The case after each variant that makes it fit; after the strongest alone if none does."""
        cases = [changed for change in self.variants(case) if (changed := case.changed(change))]
        return cases[bisect_left(cases, True, key=lambda each: each.fits) :] or cases[-1:]

    def cure(self, case: Case) -> Case:
        """The case after the mildest variant that makes it fit, or else the strongest; as it was if none applies."""
        return next(iter(self.fitting_cases(case)), case)


def _set(applies: Callable[[JobSpec], bool], **change: object) -> Variants:
    """The only variant of a remedy that sets fields."""
    return lambda case: (change,) if applies(case.job) else ()


def _set_where(applies: Callable[[Case], bool], **change: object) -> Variants:
    """The same where more than the job decides."""
    return lambda case: (change,) if applies(case) else ()


def _smaller_batches(case: Case) -> tuple[Change, ...]:
    """Ways to see the same rows in an optimizer step, fewer at once."""
    return batch_splits(
        case.job, case.job.effective_batch_size, range(1, case.job.per_device_train_batch_size)
    )


def _larger_batches(case: Case) -> tuple[Change, ...]:
    sizes = range(case.job.per_device_train_batch_size + 1, LARGEST_BATCH + 1)
    return batch_splits(case.job, case.job.effective_batch_size, sizes)


def _batches_without_checkpointing(case: Case) -> tuple[Change, ...]:
    """The batch as it is, then smaller ones, with all activations kept."""
    sizes = range(1, case.job.per_device_train_batch_size + 1)
    splits = (
        batch_splits(case.job, case.job.effective_batch_size, sizes)
        if case.job.gradient_checkpointing
        else ()
    )
    return tuple({**split, "gradient_checkpointing": False} for split in splits)


def _more_checkpoints(case: Case) -> tuple[Change, ...]:
    """One layer of four, three, two: fewer than are checkpointed now, none or one of many."""
    now = (
        case.job.checkpoint_every_n_layers
        if case.job.gradient_checkpointing
        else case.shape.num_hidden_layers
    )
    return tuple(
        {"gradient_checkpointing": True, "checkpoint_every_n_layers": n} for n in EVERY_N if n < now
    )


def _fewer_checkpoints(case: Case) -> tuple[Change, ...]:
    applies, now = case.job.gradient_checkpointing, case.job.checkpoint_every_n_layers
    return tuple({"checkpoint_every_n_layers": n} for n in EVERY_N if applies and n > now)


def _joined_rows(case: Case) -> tuple[Change, ...]:
    """Short rows joined, with the kernel that tells them apart if the card has it."""
    has_varlen = case.job.attn_implementation == "sdpa" and can_use_varlen(case.shape, case.gpu)
    kernel = {"attn_implementation": "varlen"} if has_varlen else {}
    return tuple({**split, **kernel} for split in packed_splits(case))


def _shorter_lengths(case: Case) -> tuple[Change, ...]:
    """Powers of two, and the length that 95 % of the rows keep to, rounded up to 64."""
    lengths = {2**power for power in range(case.job.max_length.bit_length())} - set(
        range(LEAST_LENGTH)
    )
    if case.rows and case.rows.p95_tokens:
        lengths.add(-(-case.rows.p95_tokens // 64) * 64)
    return tuple(
        {"max_length": length}
        for length in sorted(lengths, reverse=True)
        if length < case.job.max_length
    )


def _lower_ranks(case: Case) -> tuple[Change, ...]:
    """Halves of the rank, and of alpha with it, so that the adapter is scaled as before."""
    halvings = (
        range(1, (case.job.lora_r // LEAST_RANK).bit_length()) if case.job.trains_adapter else ()
    )
    return tuple(
        {"lora_r": case.job.lora_r // 2**n, "lora_alpha": case.job.lora_alpha / 2**n}
        for n in halvings
    )


def _halves(field: str, least: int) -> Variants:
    """Halves of a field of the stages that draw answers."""

    def variants(case: Case) -> tuple[Change, ...]:
        value = getattr(case.job, field)
        halvings = (
            range(1, (value // least).bit_length()) if STAGES[case.job.stage].generates else ()
        )
        return tuple({field: value // 2**n} for n in halvings if value % 2**n == 0)

    return variants


def _to_method(method: str, *from_methods: str) -> Variants:
    """Another method. A field that stands at the old method's default moves to the new one's."""

    def variants(case: Case) -> tuple[Change, ...]:
        if case.job.method not in from_methods:
            return ()
        old, new = _defaults_of(case.job, case.job.method), _defaults_of(case.job, method)
        moved = {
            name: new[name] for name in new if getattr(case.job, name) == old[name] != new[name]
        }
        return ({"method": method, **moved},)

    return variants


def _defaults_of(job: JobSpec, method: str) -> Change:
    """The defaults, under a method, of the fields for which some method has its own."""
    names = {name for each in METHODS for name in defaults_of(job.stage, each)}
    return {name: JobSpec.model_fields[name].default for name in names} | dict(
        defaults_of(job.stage, method)
    )


def _keeps_reference(job: JobSpec) -> bool:
    """True if a second copy of the weights stays at hand to be compared with."""
    stage = STAGES[job.stage]
    is_asked_once = job.precompute_ref_log_probs or "precompute_ref_log_probs" not in stage.fields
    return stage.reference != "none" and not job.trains_adapter and not is_asked_once


REMEDIES = (
    Remedy(
        "Checkpoint one layer of {job.checkpoint_every_n_layers}",
        "The activations of one layer of {job.checkpoint_every_n_layers} are computed again in the backward pass.",
        _more_checkpoints,
    ),
    Remedy(
        "Checkpoint activations",
        "Activations are computed again in the backward pass instead of being kept.",
        _set(
            lambda job: not job.gradient_checkpointing or job.checkpoint_every_n_layers > 1,
            gradient_checkpointing=True,
            checkpoint_every_n_layers=1,
        ),
    ),
    Remedy(
        "Batch {job.per_device_train_batch_size} × {job.gradient_accumulation_steps} accumulation",
        "Fewer rows at once, more often: an optimizer step still sees {job.effective_batch_size} rows.",
        _smaller_batches,
    ),
    Remedy(
        "SDPA attention",
        "Attention scores, which grow with the square of the length, are no longer written to memory.",
        _set(lambda job: job.attn_implementation == "eager", attn_implementation="sdpa"),
    ),
    Remedy(
        "Varlen attention",
        "Joined rows are told apart by where they begin, not by a mask that grows with the square of the length.",
        _set_where(
            lambda case: (
                case.job.packing
                and case.job.attn_implementation == "sdpa"
                and can_use_varlen(case.shape, case.gpu)
            ),
            attn_implementation="varlen",
        ),
    ),
    Remedy(
        "Fused optimizer",
        "The same AdamW without its temporary copy of everything that trains.",
        _set(lambda job: job.optim == "adamw_torch", optim="adamw_torch_fused"),
    ),
    Remedy(
        "Ask the reference first",
        "The reference model reads the data once before the training, and leaves the card.",
        _set(_keeps_reference, precompute_ref_log_probs=True),
    ),
    Remedy(
        "Offload activations",
        "What the backward pass will need waits in main memory meanwhile.",
        _set_where(
            lambda case: case.can_offload and not case.job.activation_offloading,
            activation_offloading=True,
        ),
    ),
    Remedy(
        "8-bit optimizer",
        "AdamW keeps its states in 8 bits instead of 16 or 32.",
        _set(
            lambda job: job.optim in ("adamw_torch", "adamw_torch_fused", "paged_adamw_32bit"),
            optim="adamw_8bit",
        ),
        Harm.SLIGHT,
    ),
    Remedy(
        "16-bit weights",
        "Weights are loaded in 16 bits instead of 32.",
        _set(lambda job: job.dtype == "float32", dtype="auto"),
        Harm.SLIGHT,
    ),
    Remedy(
        "Double quantisation",
        "The scales of the 4-bit base are stored in 8 bits too.",
        _set(lambda job: job.base_bits == 4, bnb_4bit_use_double_quant=True),
        Harm.SLIGHT,
    ),
    Remedy(
        "LoRA instead of full",
        "Only small adapters train, so the rest needs no gradients and no optimizer states.",
        _to_method("lora", "full"),
        Harm.REAL,
    ),
    Remedy(
        "LoRA instead of last layers",
        "Only small adapters train, so that whole layers need no gradients and no optimizer states.",
        _to_method("lora", "freeze"),
        Harm.REAL,
    ),
    Remedy(
        "QLoRA (4-bit base)",
        "Adapters train over a base that is stored in 4 bits.",
        _to_method("qlora", "full", "freeze", "lora", "lora-8bit"),
        Harm.REAL,
    ),
    Remedy(
        "No adapter dropout",
        "Without dropout there are no masks and no copies of the adapter's inputs to keep.",
        _set(lambda job: job.trains_adapter, lora_dropout=0.0),
        Harm.REAL,
    ),
    Remedy(
        "LoRA instead of DoRA",
        "The norm of every adapted weight is no longer computed in each pass.",
        _set(lambda job: job.trains_adapter, use_dora=False),
        Harm.REAL,
    ),
    Remedy(
        "Rank {job.lora_r}",
        "A smaller adapter takes less, and learns less.",
        _lower_ranks,
        Harm.REAL,
    ),
    Remedy(
        "Answers of {job.max_completion_length} tokens",
        "Shorter answers are drawn, and trained on.",
        _halves("max_completion_length", LEAST_COMPLETION),
        Harm.REAL,
    ),
    Remedy(
        "{job.num_generations} answers a prompt",
        "Fewer answers are held against each other.",
        _halves("num_generations", LEAST_GENERATIONS),
        Harm.REAL,
    ),
    Remedy(
        "Max length {job.max_length:,}",
        "Rows of more than {job.max_length:,} tokens are cut there.",
        _shorter_lengths,
        Harm.REAL,
    ),
)
"""What can save memory, least harmful first."""

IDEAS = (
    Remedy(
        "Keep activations, batch {job.per_device_train_batch_size} × {job.gradient_accumulation_steps}",
        "There is room to keep activations, so that the backward pass need not compute them again.",
        _batches_without_checkpointing,
    ),
    Remedy(
        "Checkpoint one layer of {job.checkpoint_every_n_layers}",
        "There is room to keep the activations of the other layers, which are then not computed again.",
        _fewer_checkpoints,
    ),
    Remedy(
        "Batch {job.per_device_train_batch_size} × {job.gradient_accumulation_steps}",
        "More rows at once keep the card busier: an optimizer step still sees {job.effective_batch_size} rows.",
        _larger_batches,
    ),
    Remedy(
        "Pack rows, batch {job.per_device_train_batch_size} × {job.gradient_accumulation_steps}",
        "Short rows are joined to rows of {job.max_length:,} tokens, so that nothing is padding.",
        _joined_rows,
        Harm.SLIGHT,
    ),
    Remedy(
        "Keep activations on the card",
        "There is room for them, so they need not travel to main memory and back.",
        _set(lambda job: job.activation_offloading, activation_offloading=False),
    ),
    Remedy(
        "LoRA over the 16-bit base",
        "There is room for the base as it is, which need not be unpacked for every product.",
        _to_method("lora", "qlora", "lora-8bit"),
    ),
)
"""What can turn spare memory into speed."""
