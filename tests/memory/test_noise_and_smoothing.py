"""Memory of NEFTune and label smoothing: a few hidden states, never the logits of all words."""

import pytest

from core.job import JobSpec, SpecError
from core.memory import estimate
from core.memory.program import program_of
from core.models import find_model
from tests.builders.estimates import GPU, LLAMA

FLOAT32 = 4


def peak(**fields: object) -> int:
    return estimate(JobSpec.parse(fields), LLAMA, GPU).peak_allocated_bytes


def hidden_states(**fields: object) -> int:
    """Return the number of elements of the hidden states of a micro-batch."""
    program = program_of(JobSpec.parse(fields), LLAMA, GPU)
    return program.num_tokens * LLAMA.hidden_size


def test_noise_keeps_the_embeddings_before_it() -> None:
    more = peak(neftune_noise_alpha=5) - peak()
    assert 0 < more <= 2 * FLOAT32 * hidden_states()


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_smoothing_takes_a_few_hidden_states(method: str) -> None:
    more = peak(method=method, label_smoothing_factor=0.1) - peak(method=method)
    assert 0 <= more <= 4 * FLOAT32 * hidden_states()


def test_smoothing_of_capped_logits_is_refused() -> None:
    shape = find_model("google/gemma-2-9b-it", "main").shape
    assert shape
    with pytest.raises(SpecError, match="caps its logits"):
        program_of(JobSpec.parse({"label_smoothing_factor": 0.1}), shape, GPU)
