"""Search for the configuration that a profile asks for: the fastest that fits, or the smallest.

Forecasts every configuration, which is quick, and estimates as few of them as it can.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from math import inf

from core.advise.case import Case
from core.advise.changes import (
    CHECKPOINT_ALL,
    CHECKPOINT_SOME,
    COMPILE,
    KEEP_SHARE,
    OFFLOAD,
    PACK,
    SMALLER_BATCH,
    attention_for,
    batch_fields,
    batch_sizes,
)
from core.advise.rough_memory import rough_bytes
from core.memory import TIGHT_SHARE
from core.memory.program import precision_of
from core.speed.rows import times_read
from core.training.contract.job import BATCH_FIELDS, is_sharded
from core.training.contract.stages import STAGES

MIN_GAIN = 0.02
"""Share of the time below which more memory is not spent on it."""
SLOW_HOST = 3.0
"""Factor by which a processor may be slower than forecast: 0.25 to 0.4 s per micro-batch instead of
0.15 were measured on idle machines (Unsloth, Colab). More tokens at once guard against it."""
MIN_GROWTH = 0.5
"""Least growth between two configurations, as a share of their growth in rough memory."""
FEWEST_CHECKPOINTS = 4
"""Search starts with one checkpointed layer of this many where the user wants checkpointing."""
FUSED_ADAMW = "adamw_torch_fused"
"""AdamW that a processor and parts of divided tensors can use."""
ADAMW = (FUSED_ADAMW, "adamw_torch", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit")
"""Optimizers that take the same steps but for rounding."""


def search(case: Case, set_by_user: frozenset[str]) -> Case:
    """Return the configuration that the profile of the job asks for.

    "fastest": the fastest whose estimate fits. Optimizers with 8-bit states, which are stored less
    exactly, are tried only where nothing fits without. "smallest": everything recomputed, as few
    rows at once as possible. Where nothing fits, the smallest that was found.

    Raises SpecError for a job that cannot run on this model.
    """
    best, candidates = case, []
    for optim in _optimizers(case, set_by_user):
        starts = _starts(case, optim, set_by_user)
        candidates = [each for start in starts for each in configurations(start, set_by_user)]
        best = _largest_that_fits(pareto_front(candidates))
        if best.fits:
            break
    on_card = [each for each in candidates if not each.job.activation_offloading]
    if best.fits and best.job.activation_offloading and on_card:
        # Main memory is not used for less than MIN_GAIN.
        other = _largest_that_fits(pareto_front(on_card))
        if other.fits and other.seconds_per_token() <= best.seconds_per_token() * (1 + MIN_GAIN):
            return other
    return best


def _optimizers(case: Case, set_by_user: frozenset[str]) -> tuple[str, ...]:
    """Return the optimizers to try: forms of AdamW, without 8-bit states on a processor and for a
    model that is divided among devices."""
    if "optim" in set_by_user or case.job.optim not in ADAMW:
        return (case.job.optim,)
    is_divided = is_sharded(case.job.num_devices, case.job.parallelism)
    if case.is_on_cpu or is_divided:
        return (FUSED_ADAMW,)
    if case.job.profile == "smallest":
        return ("paged_adamw_8bit",)
    return (FUSED_ADAMW, "adamw_8bit", "paged_adamw_8bit")


def _starts(case: Case, optim: str, set_by_user: frozenset[str]) -> Iterator[Case]:
    """Yield the job with its card's precision and kernel, and nothing that saves memory."""
    job = case.job
    values: dict[str, object] = {
        "dtype": dtype_for(case),
        "attn_implementation": attention_for(case),
        "gradient_checkpointing": False,
        "checkpoint_every_n_layers": 1,
        "activation_offloading": False,
        "activation_memory_budget": 1.0,
        "torch_compile": False,
        "optim": optim,
    }
    if job.gradient_checkpointing and "gradient_checkpointing" in set_by_user:
        values["checkpoint_every_n_layers"] = FEWEST_CHECKPOINTS
    sizes = batch_sizes(job, job.effective_batch_size)
    if sizes and not set(BATCH_FIELDS) & set_by_user:
        size = sizes[-1] if job.profile == "smallest" else sizes[0]
        values.update(batch_fields(size, job.effective_batch_size))
    for precompute in _precompute_options(case):
        values["precompute_ref_log_probs"] = precompute
        free = {name: value for name, value in values.items() if name not in set_by_user}
        yield case.changed(free) or case


def dtype_for(case: Case) -> str:
    """Return the precision that the card trains this job in."""
    automatic = case.job.model_copy(update={"dtype": "auto"})
    if precision_of(automatic, case.gpu).weight_itemsize == 4:
        return "float32"
    if case.gpu.supports_bf16:
        return "bfloat16"
    return "float16"


def _precompute_options(case: Case) -> tuple[bool, ...]:
    """Return the values of `precompute_ref_log_probs` to try.

    Precomputing saves time if rows are read more than once, and always the memory of a second copy.
    It takes longer if training does not reach all rows.
    """
    job = case.job
    if "precompute_ref_log_probs" not in STAGES[job.stage].fields:
        return (job.precompute_ref_log_probs,)
    times = times_read(job, case.rows)
    if job.trains_adapter:
        return (times is not None and times > 1,)
    may_take_longer = times is not None and times < 1
    if may_take_longer and job.profile == "fastest":
        return (True, False)
    return (True,)


def configurations(start: Case, set_by_user: frozenset[str]) -> Iterator[Case]:
    """Yield the ways to run a job that its profile allows and that keep what the user has set."""
    if start.job.profile == "smallest":
        yield from _recomputed(start, set_by_user)
        return
    for compiled in (start, *COMPILE.cases(start, set_by_user)):
        smaller = SMALLER_BATCH.cases(compiled, set_by_user)
        packed = PACK.cases(compiled, set_by_user)
        for batch in (compiled, *smaller, *packed):
            yield batch
            if batch.job.torch_compile:
                yield from KEEP_SHARE.cases(batch, set_by_user)
            yield from CHECKPOINT_SOME.cases(batch, set_by_user)
            yield from _recomputed(batch, set_by_user)


def _recomputed(case: Case, set_by_user: frozenset[str]) -> Iterator[Case]:
    """Yield the case with all activations recomputed, the layers' inputs on or off the card."""
    recomputed = next(CHECKPOINT_ALL.cases(case, set_by_user), case)
    yield recomputed
    if recomputed.job.gradient_checkpointing and not recomputed.job.torch_compile:
        yield from OFFLOAD.cases(recomputed, set_by_user)


def pareto_front(candidates: Iterable[Case]) -> list[Case]:
    """Return the candidates that are worth their memory, smallest first.

    Each is faster than all before it; or as fast, and safer: on a slow processor, or without main
    memory.
    """
    front: list[Case] = []
    best = best_slow = inf
    for case in sorted(candidates, key=lambda each: (rough_bytes(each), each.job.packing)):
        usual, slow = case.seconds_per_token(), case.seconds_per_token(SLOW_HOST)
        is_safer = slow <= best_slow * (1 - MIN_GAIN)
        if front and front[-1].job.activation_offloading:
            is_safer = True
        if usual <= best * (1 - MIN_GAIN) or (usual <= best and is_safer):
            front.append(case)
            best, best_slow = usual, slow
    return front


def _largest_that_fits(front: Sequence[Case]) -> Case:
    """Return the last case of a front whose estimate fits; the first if none does.

    Rough memory, corrected by the last estimate, says where to look. The search stops where the
    next case would not fit even with MIN_GROWTH: mostly after one or two estimates.
    """
    limit_bytes = TIGHT_SHARE * front[0].gpu.capacity_bytes
    sizes = [rough_bytes(case) for case in front]
    num_fitting, end, error_bytes = 0, len(front), 0.0
    while num_fitting < end:
        place = bisect_right(sizes, limit_bytes - error_bytes, num_fitting, end) - 1
        place = max(place, num_fitting)
        memory = front[place].memory
        error_bytes = memory.total_bytes - sizes[place]
        if memory.verdict != "fits":
            end = place
            continue
        num_fitting = place + 1
        if num_fitting < end:
            growth_bytes = MIN_GROWTH * (sizes[num_fitting] - sizes[place])
            if memory.total_bytes + growth_bytes > limit_bytes:
                break
    return front[max(0, num_fitting - 1)]
