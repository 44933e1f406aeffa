"""What to change so that a job fits its card, how to use the room where it does, and what fits where.

Proposes changes and estimates each; never decides. Pure functions of their arguments, cached.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import lru_cache, reduce
from itertools import accumulate, product
from operator import gt, le, lt
from types import MappingProxyType

from core.job import JobSpec, SpecError
from core.memory import MemoryEstimate, estimate
from core.memory.estimate import TIGHT_SHARE, Verdict
from core.methods import METHODS
from core.presets import BaseModel, Gpu
from core.shapes import ModelShape
from core.speed import RowStatistics, predict_speed

Change = Mapping[str, object]
"""JobSpec field -> new value."""

MOST_FIXES, MOST_IDEAS = 6, 3
LEAST_SAVING, LEAST_GAIN = 0.01, 0.03
"""Shares of the memory and of the time below which a change is not worth a button."""
LEAST_LENGTH, LEAST_RANK = 256, 8
LARGEST_BATCH = 4096  # JobSpec allows no more


class Harm(IntEnum):
    """What a change does to the result of the training."""

    NONE = 0  # the same but for rounding
    SLIGHT = 1  # numbers are stored less exactly
    REAL = 2  # it is another training


@dataclass(frozen=True)
class Fix:
    """A change of a job, estimated."""

    change: Change
    total_bytes: int
    """Memory of the changed job."""
    saves_bytes: int
    """Negative where the change takes more."""
    verdict: Verdict
    """Of the changed job."""
    slowdown: float | None
    """Seconds of an optimizer step after / before, by forecast; below 1 is faster, None is unknown."""
    title: str
    """A few words, for a button."""
    why: str
    """One sentence: how it helps and what it costs."""
    harm: Harm

    @property
    def fits(self) -> bool:
        """True if the changed job fits with room for what the estimate may be off."""
        return self.verdict == "fits"

    def to_json(self) -> dict[str, object]:
        """The object that `estimate --json` lists in `fixes`."""
        return {**vars(self), "change": dict(self.change), "harm": self.harm.name.lower()}


@dataclass(frozen=True)
class Case:
    """A job, with what is known about where and on what it runs."""

    job: JobSpec
    shape: ModelShape
    gpu: Gpu
    rows: RowStatistics | None = None

    @property
    def memory(self) -> MemoryEstimate:
        """Its estimate. Raises SpecError for a job that cannot run on this model."""
        return estimate(self.job, self.shape, self.gpu)

    @property
    def fits(self) -> bool:
        """True if it fits with room for what the estimate may be off."""
        return self.memory.verdict == "fits"

    @property
    def seconds_per_step(self) -> float | None:
        """By forecast; None if unknown."""
        speed = predict_speed(self.job, self.shape, self.gpu, self.rows)
        return speed.seconds_per_step if speed else None

    def changed(self, change: Change) -> "Case | None":
        """The case after a change; None if its fields contradict each other then."""
        try:
            return replace(self, job=JobSpec.parse({**self.job.model_dump(), **change}))
        except SpecError:
            return None


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


def _splits(case: Case, is_wanted: Callable[[int, int], bool], **also: object) -> tuple[Change, ...]:
    """Ways to see the same rows in an optimizer step, most at once first; `is_wanted` compares with the size now."""
    total, now = case.job.effective_batch_size, case.job.per_device_train_batch_size
    return tuple(
        {"per_device_train_batch_size": size, "gradient_accumulation_steps": total // size, **also}
        for size in range(min(total, LARGEST_BATCH), 0, -1)
        if total % size == 0 and is_wanted(size, now)
    )


def _splits_without_checkpointing(case: Case) -> tuple[Change, ...]:
    return _splits(case, le, gradient_checkpointing=False) if case.job.gradient_checkpointing else ()


def _shorter_lengths(case: Case) -> tuple[Change, ...]:
    """Powers of two, and the length that 95 % of the rows keep to, rounded up to 64."""
    lengths = {2**power for power in range(case.job.max_length.bit_length())} - set(range(LEAST_LENGTH))
    if case.rows and case.rows.p95_tokens:
        lengths.add(-(-case.rows.p95_tokens // 64) * 64)
    return tuple({"max_length": length} for length in sorted(lengths, reverse=True) if length < case.job.max_length)


def _lower_ranks(case: Case) -> tuple[Change, ...]:
    """Halves of the rank, and of alpha with it, so that the adapter is scaled as before."""
    halvings = range(1, (case.job.lora_r // LEAST_RANK).bit_length()) if case.job.trains_adapter else ()
    return tuple({"lora_r": case.job.lora_r // 2**n, "lora_alpha": case.job.lora_alpha / 2**n} for n in halvings)


def _to_method(method: str, *from_methods: str) -> Variants:
    """Another method. A field that stands at the old method's default moves to the new one's."""

    def variants(case: Case) -> tuple[Change, ...]:
        if case.job.method not in from_methods:
            return ()
        old, new = _defaults_of(case.job.method), _defaults_of(method)
        moved = {name: new[name] for name in new if getattr(case.job, name) == old[name] != new[name]}
        return ({"method": method, **moved},)

    return variants


def _defaults_of(method: str) -> Change:
    """The defaults of the fields for which some method has its own."""
    names = {name for record in METHODS.values() for name in record.defaults}
    return {name: JobSpec.model_fields[name].default for name in names} | dict(METHODS[method].defaults)


REMEDIES = (
    Remedy(
        "Checkpoint activations",
        "Activations are computed again in the backward pass instead of being kept.",
        _set(lambda job: not job.gradient_checkpointing, gradient_checkpointing=True),
    ),
    Remedy(
        "Batch {job.per_device_train_batch_size} × {job.gradient_accumulation_steps} accumulation",
        "Fewer rows at once, more often: an optimizer step still sees {job.effective_batch_size} rows.",
        lambda case: _splits(case, lt),
    ),
    Remedy(
        "SDPA attention",
        "Attention scores, which grow with the square of the length, are no longer written to memory.",
        _set(lambda job: job.attn_implementation == "eager", attn_implementation="sdpa"),
    ),
    Remedy(
        "Fused optimizer",
        "The same AdamW without its temporary copy of everything that trains.",
        _set(lambda job: job.optim == "adamw_torch", optim="adamw_torch_fused"),
    ),
    Remedy(
        "8-bit optimizer",
        "AdamW keeps its states in 8 bits instead of 16 or 32.",
        _set(lambda job: job.optim in ("adamw_torch", "adamw_torch_fused", "paged_adamw_32bit"), optim="adamw_8bit"),
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
        "QLoRA (4-bit base)",
        "Adapters train over a base that is stored in 4 bits.",
        _to_method("qlora", "full", "lora", "lora-8bit"),
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
    Remedy("Rank {job.lora_r}", "A smaller adapter takes less, and learns less.", _lower_ranks, Harm.REAL),
    Remedy(
        "Max length {job.max_length:,}",
        "Rows of more than {job.max_length:,} tokens are cut there.",
        _shorter_lengths,
        Harm.REAL,
    ),
)
"""What can save memory, least harmful first."""

TOGETHER: Mapping[Harm, str] = MappingProxyType(
    {
        Harm.NONE: "Together these make it fit, and the result stays the same.",
        Harm.SLIGHT: "Together these make it fit, with some numbers stored less exactly.",
        Harm.REAL: "Together these make it fit; nothing gentler does.",
    }
)
"""Why a combination of remedies, by the worst of their harms."""

IDEAS = (
    Remedy(
        "Keep activations, batch {job.per_device_train_batch_size} × {job.gradient_accumulation_steps}",
        "There is room to keep activations, so that the backward pass need not compute them again.",
        _splits_without_checkpointing,
    ),
    Remedy(
        "Batch {job.per_device_train_batch_size} × {job.gradient_accumulation_steps}",
        "More rows at once keep the card busier: an optimizer step still sees {job.effective_batch_size} rows.",
        lambda case: _splits(case, gt),
    ),
    Remedy(
        "LoRA over the 16-bit base",
        "There is room for the base as it is, which need not be unpacked for every product.",
        _to_method("lora", "qlora", "lora-8bit"),
    ),
)
"""What can turn spare memory into speed."""


@lru_cache(maxsize=256)
def suggest_fixes(job: JobSpec, shape: ModelShape, gpu: Gpu, rows: RowStatistics | None = None) -> tuple[Fix, ...]:
    """What to change, best first, for a job that does not fit or is tight; nothing for one that fits.

    First what makes it fit: the least harmful, then the fastest. Then what only helps, by bytes saved. A combination is
    among them where no single change is enough, or none that does so little harm.

    Raises SpecError for a job that cannot run on this model.
    """
    case = Case(job, shape, gpu, rows)
    if case.fits:
        return ()
    fixes = [_fix(case, remedy.cure(case), (remedy,)) for remedy in REMEDIES]
    together = _gentlest_combination(case)
    if len(together) > 1:
        combined = _fix(case, _cure(case, together), together)
        fixes += [combined] if all(combined.harm < fix.harm for fix in fixes if fix.fits) else []
    worthwhile = (fix for fix in fixes if fix.saves_bytes > LEAST_SAVING * case.memory.total_bytes)
    return tuple(sorted(worthwhile, key=_rank)[:MOST_FIXES])


@lru_cache(maxsize=256)
def use_the_room(job: JobSpec, shape: ModelShape, gpu: Gpu, rows: RowStatistics | None = None) -> tuple[Fix, ...]:
    """What would make a job that fits faster and still fit, fastest first; nothing where the speed is unknown.

    Raises SpecError for a job that cannot run on this model.
    """
    case = Case(job, shape, gpu, rows)
    if not case.fits or case.seconds_per_step is None:
        return ()
    options = ((idea, idea.fitting_cases(case)) for idea in IDEAS)
    fastest = ((idea, min(cases, key=lambda each: each.seconds_per_step or 0)) for idea, cases in options if cases)
    fixes = [_fix(case, after, (idea,)) for idea, after in fastest]
    gains = (fix for fix in fixes if fix.fits and fix.slowdown and fix.slowdown <= 1 - LEAST_GAIN)
    return tuple(sorted(gains, key=_rank)[:MOST_IDEAS])


@lru_cache(maxsize=4096)
def largest_batch(job: JobSpec, shape: ModelShape, gpu: Gpu) -> int | None:
    """The largest per_device_train_batch_size with which this job fits; None if even one row does not.

    Memory grows almost evenly with the batch, so a line through the last two sizes tells which to try next: a handful
    of estimates, where halving the range takes a dozen. Raises SpecError for a job that cannot run on this model.
    """
    fits, too_large = 0, LARGEST_BATCH + 1
    size, before = 1, (0, 0)
    while too_large - fits > 1:
        memory = estimate(job.model_copy(update={"per_device_train_batch_size": size}), shape, gpu)
        fits, too_large = (size, too_large) if memory.verdict == "fits" else (fits, size)
        here = (size, memory.total_bytes)
        bytes_per_row = (here[1] - before[1]) / (here[0] - before[0]) or 1
        guess = size + int((TIGHT_SHARE * gpu.capacity_bytes - memory.total_bytes) // bytes_per_row)
        before, size = here, min(max(guess, fits + 1), too_large - 1)
    return fits or None


@dataclass(frozen=True)
class Cell:
    """One cell of the table "What fits where"."""

    model: str
    method: str
    gpu: str
    batch: int | None
    """The largest per_device_train_batch_size that fits; None if not even one row does."""


def what_fits(
    models: Iterable[BaseModel], methods: Sequence[str], gpus: Sequence[Gpu], max_length: int = 2048
) -> tuple[Cell, ...]:
    """The largest batch of rows of `max_length` tokens, with checkpointing and otherwise default settings.

    Raises SpecError if a model has fewer positions than that.
    """
    jobs = [JobSpec.parse({"method": method, "max_length": max_length}) for method in methods]
    return tuple(
        Cell(model.id, job.method, gpu.id, largest_batch(job, model.shape, gpu))
        for model, job, gpu in product(models, jobs, gpus)
    )


def _gentlest_combination(case: Case) -> tuple[Remedy, ...]:
    """Remedies that make a case fit together: added from the least harmful on, then those left out that need not be
    there, from the most harmful on. Empty if all of them are not enough."""
    stages = accumulate(REMEDIES, lambda changed, remedy: remedy.cure(changed), initial=case)
    needed = next((number for number, changed in enumerate(stages) if changed.fits), 0)
    chosen = list(REMEDIES[:needed])
    for remedy in reversed(chosen[:-1]):
        fewer = [each for each in chosen if each is not remedy]
        if _cure(case, fewer).fits:
            chosen = fewer
    return tuple(chosen)


def _cure(case: Case, remedies: Iterable[Remedy]) -> Case:
    """The case after these remedies, each at its strongest but the one that makes it fit."""
    return reduce(lambda changed, remedy: remedy.cure(changed), remedies, case)


def _fix(case: Case, after: Case, remedies: Sequence[Remedy]) -> Fix:
    """What these remedies did to a case."""
    harm = max(remedy.harm for remedy in remedies)
    old, new = case.job.model_dump(), after.job.model_dump()
    before_seconds, seconds = case.seconds_per_step, after.seconds_per_step
    return Fix(
        change=MappingProxyType({name: new[name] for name in new if new[name] != old[name]}),
        total_bytes=after.memory.total_bytes,
        saves_bytes=case.memory.total_bytes - after.memory.total_bytes,
        verdict=after.memory.verdict,
        slowdown=seconds / before_seconds if seconds and before_seconds else None,
        title=" + ".join(remedy.title for remedy in remedies).format(job=after.job),
        why=(remedies[0].why if len(remedies) == 1 else TOGETHER[harm]).format(job=after.job),
        harm=harm,
    )


def _rank(fix: Fix) -> tuple[float, ...]:
    """Lowest first: see `suggest_fixes`."""
    return (0, fix.harm, fix.slowdown or 1, -fix.saves_bytes) if fix.fits else (1, -fix.saves_bytes)
