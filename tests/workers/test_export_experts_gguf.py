"""Test runs with adapters on experts as GGUF files, with the real converters."""

from pathlib import Path

import pytest

from core.after_training.export.tools import FOLDER_VARIABLE
from core.runs import Home, Run, read
from tests.builders.exports import export
from tests.builders.mixtures import GPT_OSS, MIXTRAL, QWEN3, Mixture, make_mixture_run
from tests.builders.training_runs import FINISHED, train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.training,
    pytest.mark.filterwarnings("ignore"),
]
NORMED = Mixture("qwen3_moe", QWEN3.target_modules, QWEN3.config | {"norm_topk_prob": True})
"""llama.cpp normalizes the shares of the experts of this family always."""
OLMOE = Mixture(
    "olmoe", "gate_proj,up_proj,down_proj", {"num_experts": 4, "num_key_value_heads": 4}
)
RUNS = {
    "mixtral": (MIXTRAL, {}),
    "mixtral_qlora": (MIXTRAL, {"method": "qlora"}),
    "qwen3_moe": (NORMED, {"lora_r": 3, "use_rslora": True}),
    "olmoe": (OLMOE, {}),
    "gpt_oss": (GPT_OSS, {}),
}


@pytest.fixture(params=RUNS)
def run(
    request: pytest.FixtureRequest, home: Home, tools: Path, monkeypatch: pytest.MonkeyPatch
) -> Run:
    """Train a run for each of RUNS in a home of the test, with the converters."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(tools))
    mixture, fields = RUNS[request.param]
    folder = make_mixture_run(home.path, mixture, learning_rate=1e-2, **fields)
    assert train(folder) == FINISHED
    return read(home, folder.name)


@pytest.mark.parametrize("form", ["merged", "gguf"])
def test_experts_answer_as_trained_elsewhere(run: Run, form: str) -> None:
    settings = {"quant": "F16"} if form == "gguf" else {}
    verified = export(run, form, **settings).manifest.verified
    assert verified.trusted, verified.note
    assert verified.prompt_tokens_equal == 16
    assert verified.worst_logprob_difference < 0.05
