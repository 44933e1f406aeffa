"""Test GGUF exports with the real converters, which TAILOR_EXPORT_TOOLS names or pip installs."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from core.after_training.export.forms import QUANTS, Quant
from core.after_training.export.records import ExportRequest
from core.runs import Run
from core.training.contract.job import Job
from core.workers.export.importance import write_importance
from core.workers.export.llama import answers_of_gguf, write_gguf
from core.workers.export.questions import ExportQuestion, answers
from core.workers.export.task import ExportTask
from tests.builders.exports import TINY_LLAMA, export
from tests.builders.paths import DEMO, ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.training,
    pytest.mark.filterwarnings("ignore"),
]
PROMPTS = ("hello, who are you", "the shop", "1 2 3", "What is the colour of a strawberry?")
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {},
    "olmo2": {},
    "granite": {},
    "smollm3": {"pad_token_id": 0},
    "mixtral": {"num_local_experts": 4},
    "gemma3_text": {"query_pre_attn_scalar": 16, "sliding_window": 512},
}
TOLERANCE = {"gemma3_text": 1e-3}
DEFAULT_TOLERANCE = 1e-5
F32 = Quant("F32", 0, 32, True)


@pytest.mark.parametrize("quant", ["BF16", "F16"])
def test_a_16_bit_file_answers_as_trained(run: Run, quant: str) -> None:
    verified = export(run, "gguf", quant=quant).manifest.verified
    assert verified.trusted, verified.note
    assert verified.prompt_tokens_equal == 16
    assert verified.worst_logprob_difference < 0.05


def test_a_quantized_file_reads_the_same_prompts(run: Run) -> None:
    verified = export(run, "gguf", quant="Q4_K_M").manifest.verified
    assert verified.prompt_tokens_equal == 16


def test_a_zip_for_ollama_holds_all_files(run: Run) -> None:
    result = export(run, "ollama", quant="Q8_0")
    (archive,) = result.folder.glob("*.zip")
    names = {Path(name).name for name in ZipFile(archive).namelist()}
    assert names == {"Modelfile", "README.md", f"{run.id}-Q8_0.gguf"}
    assert "TEMPLATE" in (result.folder / "Modelfile").read_text()


def test_an_importance_matrix_is_measured_on_rows_and_can_be_given(
    run: Run, tmp_path: Path, tools: Path
) -> None:
    result = export(run, "gguf", quant="Q4_K_M", imatrix="rows")
    assert result.name == "gguf-Q4_K_M-imatrix"
    assert any("importance matrix of" in note for note in result.manifest.notes)
    plain = export(run, "gguf", quant="Q4_K_M")
    assert plain.manifest.files[0].sha256 != result.manifest.files[0].sha256
    matrix = write_matrix(tmp_path, run, tools)
    given = export(run, "gguf", quant="Q4_K_M", imatrix=str(matrix))
    assert given.manifest.files[0].sha256 == result.manifest.files[0].sha256
    weighed = "tests.builders.weighed_quantization"  # the same by llama.cpp's function alone
    paths = (tools, tmp_path / "model.gguf", matrix, result.gguf)
    command = [sys.executable, "-m", weighed, *map(str, paths)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "28 of 28\n", done.stderr[-500:]


def write_matrix(folder: Path, run: Run, tools: Path) -> Path:
    """Return the file of the importance matrix of a run, as its export measures it."""
    made = export(run, "merged").folder
    (folder / "task").mkdir()
    request = ExportRequest("gguf", "gguf", "trained", str(run.folder), "", tools=str(tools))
    task = ExportTask(folder / "task", request)
    job = Job.from_json(json.loads((run.folder / "job.json").read_text()))
    write_importance(task, job, made, folder / "importance.npz")
    write_gguf(task, made, QUANTS["BF16"], folder / "model.gguf")
    arguments = (tools, folder / "importance.npz", folder / "model.gguf", folder / "imatrix.gguf")
    command = [sys.executable, "-m", "core.workers.export.imatrix", *map(str, arguments)]
    subprocess.run(command, cwd=ROOT, check=True)
    return folder / "imatrix.gguf"


def task_of(tmp_path: Path, tools: Path) -> ExportTask:
    (tmp_path / "task").mkdir()
    request = ExportRequest("gguf", "gguf", "trained", "", "", tools=str(tools))
    return ExportTask(tmp_path / "task", request)


def questions() -> Sequence[ExportQuestion]:
    return [ExportQuestion(text, text, True) for text in PROMPTS]


@pytest.mark.parametrize("family", FAMILIES)
def test_random_models_of_many_families_agree(family: str, tmp_path: Path, tools: Path) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **TINY_LLAMA | FAMILIES[family])
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    model.save_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    task = task_of(tmp_path, tools)
    write_gguf(task, tmp_path / "model", F32, tmp_path / "model.gguf")
    before = answers(model, tokenizer, questions())
    after, notes = answers_of_gguf(task, tmp_path / "model.gguf", questions(), before)
    assert notes == ()
    for one, other in zip(before, after, strict=True):
        assert one.prompt == other.prompt
        if other.first_logprob is not None:  # not told where a part of a character comes first
            difference = abs(one.first_logprob - other.first_logprob)
            assert difference < TOLERANCE.get(family, DEFAULT_TOLERANCE)


def test_the_converters_shadow_nothing(tools: Path) -> None:
    code = "import importlib.util as u; print(u.find_spec('gguf'), u.find_spec('cyllama'))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.strip() == "None None"
    assert tools.is_dir()


def test_every_quant_has_a_number_of_llama_cpp(tools: Path) -> None:
    names = {quant.name: quant.ftype for quant in QUANTS.values()}
    code = (
        f"import sys, json; sys.path.insert(0, {str(tools)!r}); import gguf; "
        "print(json.dumps({each.name.removeprefix('MOSTLY_'): int(each) "
        "for each in gguf.LlamaFileType}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    known = json.loads(done.stdout)
    assert {name: known[name] for name in names} == names
