"""Test adapters as GGUF with the real converter and llama.cpp: base and adapter answer as PEFT."""

from dataclasses import replace
from pathlib import Path

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from core.after_training.export.forms import Quant
from core.after_training.export.tools import FOLDER_VARIABLE, find_tools
from core.runs import Home
from core.training.contract.files import write_json
from core.workers.export.llama import answers_of_gguf, write_adapter_gguf, write_gguf
from core.workers.export.questions import ExportQuestion, answers
from core.workers.export.task import ExportTask
from tests.builders.exports import AdapterCase, make_case
from tests.builders.fake_runs import FINISHED

pytestmark = [pytest.mark.slow, pytest.mark.training, pytest.mark.filterwarnings("ignore")]
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PROMPTS = ("hello, who are you", "the shop", "1 2 3", "What is the colour of a strawberry?")
CASES = {
    "lora": AdapterCase(adapter={"target_modules": ALL}),
    "rslora": AdapterCase(adapter={"target_modules": ALL, "use_rslora": True}),
    "patterns": AdapterCase(
        adapter={"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 20}}
    ),
    "qwen3": AdapterCase(family="qwen3", adapter={"target_modules": ALL}),
    "mixture of experts": AdapterCase(family="mixtral", config={"num_local_experts": 4}),
    "experts": AdapterCase(
        family="mixtral",
        config={"num_local_experts": 4},
        adapter={"target_modules": ["q_proj", "gate", "w1", "w2", "w3"]},
    ),
    "experts of qwen3": AdapterCase(
        family="qwen3_moe",
        config={
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "norm_topk_prob": True,
        },
        adapter={"target_modules": ["gate_proj", "up_proj", "down_proj"], "use_rslora": True},
    ),
}
F32 = Quant("F32", 0, 32, True)
TOLERANCE = 1e-3
"""Of log-probabilities: llama.cpp keeps the base in 16 bits as it is stored, and adds in another
order."""


def task_with_tools(folder: Path, case: AdapterCase) -> ExportTask:
    """Return the export of an adapter with the packages of `make export`."""
    task = make_case(folder / "runs", case)
    write_json(folder / "runs" / "run" / "status.json", FINISHED)
    tools = find_tools(Home.find(str(folder)))
    assert tools.adapter_converter
    return ExportTask(
        task.folder,
        replace(
            task.request,
            tools=str(tools.folder),
            adapter_converter=str(tools.adapter_converter),
        ),
    )


@pytest.mark.parametrize("name", CASES)
def test_base_and_adapter_answer_as_peft(
    name: str, tmp_path: Path, tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tools))
    task = task_with_tools(tmp_path, CASES[name])
    base, run = Path(task.request.base_folder), Path(task.request.run_folder)
    write_gguf(task, base, F32, tmp_path / "base.gguf")
    write_adapter_gguf(task, tmp_path / "adapter.gguf")
    model = AutoModelForCausalLM.from_pretrained(base, dtype="float32")
    plain = answers(model, AutoTokenizer.from_pretrained(base), questions())
    adapted = PeftModel.from_pretrained(model, run / "output")
    before = answers(adapted, AutoTokenizer.from_pretrained(base), questions())
    after, _notes = answers_of_gguf(
        task, tmp_path / "base.gguf", questions(), before, str(tmp_path / "adapter.gguf")
    )
    pairs = list(zip(before, after, strict=True))
    known = [pair for pair in pairs if pair[1].first_logprob is not None]
    assert known
    assert all(abs(one.first_logprob - other.first_logprob) < TOLERANCE for one, other in known)
    assert [each.first_logprob for each in plain] != [each.first_logprob for each in before]


def questions() -> list[ExportQuestion]:
    return [ExportQuestion(text, text, True) for text in PROMPTS]
