"""The ladder of a profile: the ways to run a job, each faster than the one before and in need of more memory.

Forecasts every way, which is quick, and estimates few of them: the ways of a ladder that fit are its lower part.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from math import inf
from types import MappingProxyType

from core.advise import Case, Change
from core.advise.case import batch_splits, packed_splits
from core.job import JobSpec
from core.models import Gpu, ModelShape
from core.speed import Speed, predict_speed
from core.speed.kernels import can_use_varlen, needs_eager
from core.speed.passes import passes_of
from core.speed.work import KEPT_TENSORS
from core.training.contract.stages import STAGES

LEAST_GAIN = 0.02
"""Share of the time below which more memory is not spent on it."""
SLOW_HOST = 3.0
"""A processor this much slower than the forecast's is no surprise: 0.25 to 0.4 s a micro-batch were measured where the
forecast has 0.15 (Unsloth, Colab), on a machine that does nothing else. More tokens at once guard against it."""
COMPILE_SECONDS: Mapping[int, float] = MappingProxyType({16: 100.0, 4: 200.0})
"""Bits of the base -> what compiling the layers costs. Cold starts of 25 s (16 bits) to 100 s (4 bits) are published
(Unsloth), for gains of 14 to 19 %: with a margin of two to four a run pays it back from 10 and 20 minutes on. A base
that is not here is not compiled."""
INPUT_SHARE = 0.04
"""Of what a layer keeps, its input, which is all that checkpointing keeps: 8 of 185 to 238 kB per token in an 8B."""

LINEAR_INPUTS_SHARE = 0.26
"""The same of the inputs of its linear layers, which 8-bit ones keep even if it is checkpointed: 53 of 206 kB."""
LOGIT_BYTES = 12
"""Per logit of a head that has them all at once: they and their gradient in float32, and as much for the half of the
rows whose answers are imitated."""

MANY_TOKENS = 65_536
"""At once: four times what the fastest card needs to be busy."""

LEAST_CAPABILITY = USUAL_CAPABILITY = (8, 0)
USUAL_FLOPS, USUAL_BYTES_PER_SECOND = 1e14, 1e12

ADAMW = ("adamw_torch_fused", "adamw_torch", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit")
"""Optimizers that take the same steps but for rounding."""


ONLY_WHERE_USED = ("checkpoint_every_n_layers", "activation_memory_budget")
"""What a way that does not checkpoint, or not compile, does not look at: set by a person, it speaks against neither."""


def _level(
    checkpointing: bool, every: int = 1, offloading: bool = False, budget: float = 1.0
) -> Change:
    return {
        "gradient_checkpointing": checkpointing,
        "checkpoint_every_n_layers": every,
        "activation_offloading": offloading,
        "activation_memory_budget": budget,
    }


CHECKPOINT_ALL, OFFLOAD_ALL = _level(True), _level(True, offloading=True)
ONE_LAYER_OF = tuple(_level(True, every) for every in (4, 3, 2))
WITHIN_BUDGET = tuple(_level(False, budget=budget) for budget in (0.9, 0.5, 0.3, 0.1))
"""Of compiled layers only. At 0.9 no family does a product twice, and most keep two thirds."""
KEPT_WITHOUT_PRODUCTS = 0.66
"""Of what a compiled layer keeps, what it keeps if it only computes again what is no product: 43 of 66 kB per token in
a Llama layer (`python benchmarks/compiled_layers.py`)."""
KEPT_COMPILED = 0.7
"""Of what a layer keeps, what it keeps if it is compiled, by the estimate: 0.67 with full, 0.73 with LoRA in Llama."""


@dataclass(frozen=True)
class Profile:
    """What a profile chooses from."""

    levels: tuple[Change, ...]
    """Which activations are kept, and where."""
    optimizers: tuple[str, ...]
    """Of AdamW's forms, those to try: the first with which anything fits."""
    tries_all: bool
    """Batches of every size, joined rows and compiled layers; or one row at once."""


PROFILES: Mapping[str, Profile] = MappingProxyType(
    {
        "fastest": Profile(
            levels=(_level(False), *WITHIN_BUDGET, *ONE_LAYER_OF, CHECKPOINT_ALL, OFFLOAD_ALL),
            optimizers=("adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit"),
            tries_all=True,
        ),
        "smallest": Profile(
            levels=(CHECKPOINT_ALL, OFFLOAD_ALL), optimizers=("paged_adamw_8bit",), tries_all=False
        ),
    }
)


def climb(case: Case, profile: Profile, set_by_user: frozenset[str]) -> Case:
    """The fastest way to run a job that fits; the smallest of all if none does.

    Optimizers with 8-bit states, which are stored less exactly, are tried only where nothing fits without. Raises
    SpecError for a job that cannot run on this model.
    """
    highest = case
    for optim in _optimizers(case, profile, set_by_user):
        highest = _highest(case, profile, set_by_user, optim)
        if highest.fits:
            break
    if (
        highest.fits
        and highest.job.activation_offloading
        and "activation_offloading" not in set_by_user
    ):
        on_card = replace(
            profile,
            levels=tuple(level for level in profile.levels if not level["activation_offloading"]),
        )
        other = _highest(case, on_card, set_by_user, highest.job.optim)
        if other.fits and seconds_per_token(other) <= seconds_per_token(highest) * (1 + LEAST_GAIN):
            return other  # main memory is not used for less
    return highest


def _highest(case: Case, profile: Profile, set_by_user: frozenset[str], optim: str) -> Case:
    """The highest rung that fits, or the lowest of all."""
    rungs = _ladder(_ways(case, profile, set_by_user, optim)) or [case]
    if not rungs[0].fits:
        return rungs[0]
    return rungs[bisect_left(rungs, True, lo=1, key=lambda rung: not rung.fits) - 1]


def seconds_per_token(case: Case, host_factor: float = 1.0) -> float:
    """Seconds of the whole job per token of the data, compiling included; of its steps if nobody can count them."""
    speed = forecast(case, host_factor)
    if speed.hours is None or not speed.num_steps:
        return 1 / speed.tokens_per_second
    tokens = speed.num_steps * speed.seconds_per_step * speed.tokens_per_second
    return (3600 * speed.hours + compile_seconds(case)) / tokens


def compile_seconds(case: Case) -> float:
    """Seconds until the layers are compiled, if they are."""
    return COMPILE_SECONDS.get(case.job.base_bits, 0.0) if case.job.torch_compile else 0.0


def forecast(case: Case, host_factor: float = 1.0) -> Speed:
    """The forecast, as of a usual card where there is none: ways are compared with it, nothing is promised."""
    gpu = case.gpu
    rated = replace(
        gpu,
        compute_capability=gpu.compute_capability if not case.is_on_cpu else USUAL_CAPABILITY,
        flops=gpu.flops or USUAL_FLOPS,
        memory_bandwidth_bytes_per_second=gpu.memory_bandwidth_bytes_per_second
        or USUAL_BYTES_PER_SECOND,
    )
    speed = predict_speed(case.job, case.shape, rated, case.rows, host_factor)
    assert speed is not None  # the card has all that a forecast asks for
    return speed


def compile_obstacle(case: Case) -> str:
    """Why the layers of a job are not compiled, each by itself, whatever it would save; empty if nothing speaks against
    it."""
    job, capability = case.job, case.gpu.compute_capability
    if case.is_on_cpu:
        return "the 1 to 2 minutes it takes seldom pay on a processor"
    if case.gpu.lacks_for_compiling:
        return case.gpu.lacks_for_compiling
    if capability < LEAST_CAPABILITY:
        return f"compute capability {capability[0]}.{capability[1]} is below 8.0"
    if job.base_bits not in COMPILE_SECONDS:
        return f"a base in {job.base_bits} bits cannot be"
    if case.shape.num_experts > 1:
        return f"each token takes other ways through {case.shape.num_experts} experts"
    if STAGES[job.stage].generates:
        return "answers grow by 1 token at a time, each a new length"
    return ""


def attention_for(packing: bool, shape: ModelShape, gpu: Gpu) -> str:
    """The kernel for joined rows, or for others, on this card."""
    if needs_eager(shape):
        return "eager"
    return "varlen" if packing and can_use_varlen(shape, gpu) else "sdpa"


def _optimizers(case: Case, profile: Profile, set_by_user: frozenset[str]) -> tuple[str, ...]:
    """The optimizers to try: only forms of AdamW stand for each other, and the 8-bit ones need CUDA."""
    if "optim" in set_by_user or case.job.optim not in ADAMW:
        return (case.job.optim,)
    return profile.optimizers if not case.is_on_cpu else ("adamw_torch_fused",)


def _ways(case: Case, profile: Profile, set_by_user: frozenset[str], optim: str) -> Iterator[Case]:
    """Every way that the profile allows, and that agrees with what is set_by_user."""
    job = case.job
    sizes = range(1, max(1, MANY_TOKENS // job.max_length) + 1)
    splits = batch_splits(job, job.effective_batch_size, sizes)
    batches = (*splits, *packed_splits(case, sizes)) if profile.tries_all else splits[-1:]
    set_anyway = {name: getattr(job, name) for name in ONLY_WHERE_USED if name in set_by_user}
    levels = (
        {**level, **set_anyway}
        for level in profile.levels
        if case.can_offload or not level["activation_offloading"]
    )
    may_compile = (
        profile.tries_all and not compile_obstacle(case) and forecast(case).num_steps is not None
    )
    compiles = (
        {"torch_compile": compiled} for compiled in ((False, True) if may_compile else (False,))
    )
    for choices in product(
        *(_agreeing(job, each, set_by_user) for each in (batches, levels, compiles))
    ):
        change = {name: value for choice in choices for name, value in choice.items()} | {
            "optim": optim
        }
        if "attn_implementation" not in set_by_user:
            packing = bool(change.get("packing", job.packing))
            change["attn_implementation"] = attention_for(packing, case.shape, case.gpu)
        if not _contradicts(job, change, set_by_user) and (way := case.changed(change)):
            yield way


def _contradicts(job: JobSpec, change: Change, set_by_user: frozenset[str]) -> bool:
    """Offloading and compiled layers both take what is saved; a budget is for compiled layers, unless it is there
    anyway."""
    if change.get("torch_compile", job.torch_compile):
        return bool(change.get("activation_offloading"))
    return (
        change.get("activation_memory_budget", 1.0) != 1
        and "activation_memory_budget" not in set_by_user
    )


def _agreeing(
    job: JobSpec, changes: Iterable[Change], set_by_user: frozenset[str]
) -> tuple[Change, ...]:
    """The changes that leave what is set_by_user as it is; none at all if there are none."""
    agreeing = (
        change
        for change in changes
        if all(getattr(job, name) == change[name] for name in change if name in set_by_user)
    )
    return tuple(agreeing) or ({},)


def _ladder(ways: Iterable[Case]) -> list[Case]:
    """The ways by rising memory, without those that are not faster than a smaller one: or not slower, and faster once
    the processor is slow, or without main memory."""
    rungs: list[tuple[float, float, Case]] = []
    for way in sorted(ways, key=_kept_layers):
        usual, slow = seconds_per_token(way), seconds_per_token(way, SLOW_HOST)
        before, before_slow, smaller = rungs[-1] if rungs else (inf, inf, way)
        spares_host = slow <= before_slow * (1 - LEAST_GAIN) or smaller.job.activation_offloading
        if usual <= before * (1 - LEAST_GAIN) or (usual <= before and spares_host):
            rungs.append((usual, slow, way))
    return [way for *_, way in rungs]


def _kept_layers(way: Case) -> tuple[float, bool]:
    """What a way keeps for the backward pass, in rows x layers, to tell the larger of two: of the layers that gradients
    reach, those that are not computed again, the inputs of those that are, and the one at work; and logits, where all
    are there at once. Joined rows may need a mask besides."""
    job, passes = way.job, passes_of(way.job, way.shape)
    budget, reached = job.activation_memory_budget, passes.input_gradient
    kept = reached - passes.recompute if job.gradient_checkpointing else reached
    if job.torch_compile and not job.gradient_checkpointing and budget < 1:
        kept = reached * min(budget, KEPT_WITHOUT_PRODUCTS)
    kept *= KEPT_COMPILED if job.torch_compile else 1
    input_share = 0 if job.activation_offloading else INPUT_SHARE
    input_share += LINEAR_INPUTS_SHARE if job.base_bits == 8 else 0
    inputs = input_share * (reached - kept)
    logits_bytes = LOGIT_BYTES * way.shape.vocab_size if STAGES[job.stage].head == "logits" else 0
    logits = logits_bytes / (2 * KEPT_TENSORS * way.shape.hidden_size)
    layers = 1 + way.shape.num_hidden_layers * (kept + inputs)
    return job.per_device_train_batch_size * (layers + logits), job.packing
