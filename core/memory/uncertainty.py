"""How far an estimate may be off, and why. Knows nothing of tensors."""

from collections.abc import Iterator
from dataclasses import dataclass

from core.job import JobSpec
from core.memory.context import context_of
from core.memory.program.precision import is_cpu
from core.models import Gpu
from core.training.contract.stages import STAGES

ERROR = 0.02
"""How far the allocated peak may be off, as a share: the worst miss on fully specified measured runs is below it."""
LEAST_SPREAD = 0.01
"""How much more than foretold may be reserved, as a share, when every batch is as long as the next."""
SPREAD_OF_VARYING_LENGTHS = 0.05
"""The same when every batch has other lengths: gaps of one do not fit the next. Replays of 24 jobs with random lengths
reserved 0 to 7 % more than was allocated, 2 % in the median."""
SPREAD_OF_COMPILATION = 0.03
"""What a compiled layer keeps is known to the byte. What it has at once is 10 % too low at worst, and one layer alone
has it: 2 % where that is a fifth of all (tests/test_compiled_layers.py). The rest is for kernels being tried."""


@dataclass(frozen=True)
class Spread:
    """The part of an estimate that nobody can know beforehand."""

    share: float
    """How much more than foretold may be reserved."""
    why: str
    """One or two sentences for a reader."""


ON_CPU = Spread(
    0.0, "Without a GPU the whole process counts, and what Python and its libraries take varies."
)


def spread_of(
    job: JobSpec, gpu: Gpu, longest_tokens: int, mean_tokens: float | None = None
) -> Spread:
    """The spread of a job's estimate, for rows of `mean_tokens` on average (None: unknown) and `longest_tokens` at
    most."""
    if is_cpu(gpu):
        return ON_CPU
    found = tuple(_reasons(job, longest_tokens, mean_tokens))
    sentences = [sentence for _, sentence in found]
    if not context_of(gpu).is_known:
        sentences.append(
            "Nobody has measured yet what the CUDA driver takes for itself on this card."
        )
    return Spread(LEAST_SPREAD + sum(share for share, _ in found), " ".join(sentences))


def _reasons(
    job: JobSpec, longest_tokens: int, mean_tokens: float | None
) -> Iterator[tuple[float, str]]:
    """(what it adds to the spread, a sentence)."""
    if job.packing:
        yield 0.0, "Packed rows are all of one length, so that little can vary."
    else:
        most = SPREAD_OF_VARYING_LENGTHS - LEAST_SPREAD
        share = 1.0 if mean_tokens is None else max(0.0, 1 - mean_tokens / longest_tokens)
        seen = "may differ" if mean_tokens is None else f"have {mean_tokens:.0f} tokens on average"
        yield (
            most * share,
            f"Rows {seen}, {longest_tokens} at most, and batches of other lengths leave other gaps.",
        )
    if STAGES[job.stage].generates:
        yield 0.0, "Answers are taken for as long as they may be."
    if job.torch_compile:
        yield SPREAD_OF_COMPILATION, "A compiled layer decides by itself in which order it works."
