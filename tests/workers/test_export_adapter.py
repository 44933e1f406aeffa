"""Test the adapter alone as others get it: complete, and without a place of this machine."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from core.training.contract.files import write_json
from core.training.contract.weights.adapters import PREFIX, SETTINGS, WEIGHTS, read_adapter
from core.workers.export.adapter_files import scale_as_llama_cpp, write_adapter
from core.workers.export.layers import scale_of
from core.workers.export.llama import write_adapter_gguf
from core.workers.export.task import ExportTask
from tests.builders.exports import AdapterCase, make_case
from tests.builders.fake_runs import FINISHED

pytestmark = pytest.mark.filterwarnings("ignore")
CONVERTER = """
import sys
from pathlib import Path

target, folder = Path(sys.argv[4]), Path(sys.argv[5])
texts = [path.read_text("utf-8", "replace") for path in folder.iterdir()]
target.write_text("".join(texts))
"""
"""Stand-in for convert_lora_to_gguf.py, which puts all that it reads into the file."""


@pytest.fixture
def task(tmp_path: Path) -> ExportTask:
    """Return an export of a run with an adapter, in a home of its own."""
    made = make_case(tmp_path / "runs", AdapterCase())
    write_json(tmp_path / "runs" / "run" / "status.json", FINISHED)
    (tmp_path / "runs" / "base" / "NOTICE").write_text("Built with care.")
    return made


def test_an_adapter_comes_with_its_tokenizer_and_the_licence_of_its_base(task: ExportTask) -> None:
    folder = task.folder / "copy"
    write_adapter(task, folder)
    names = {path.name for path in folder.iterdir()}
    assert names >= {WEIGHTS, SETTINGS, "tokenizer.json", "NOTICE"}
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert "is_local" not in settings
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_a_gguf_adapter_does_not_say_where_its_base_lies(task: ExportTask, tmp_path: Path) -> None:
    converter = tmp_path / "convert.py"
    converter.write_text(CONVERTER)
    task.request = replace(task.request, adapter_converter=str(converter))
    target = task.folder / "adapter.gguf"
    write_adapter_gguf(task, target)
    text = target.read_text()
    assert "base_model_name_or_path" in text
    assert str(tmp_path) not in text


PATTERNS = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 20}}


def deltas(folder: Path) -> dict[str, torch.Tensor]:
    """Return what an adapter adds to each layer."""
    adapter, tensors = read_adapter(folder), load_file(folder / WEIGHTS)
    found = {}
    for module, (rank, _in, _out) in adapter.modules.items():
        up, down = (tensors[f"{PREFIX}{module}.lora_{side}.weight"] for side in "BA")
        found[module] = up.float() @ down.float() * scale_of(adapter.settings, module, rank)
    return found


@pytest.mark.parametrize(
    "adapter",
    [{"use_rslora": True}, PATTERNS, PATTERNS | {"use_rslora": True}],
    ids=["rslora", "patterns", "both"],
)
def test_an_adapter_stays_the_same_with_the_scale_of_llama_cpp(
    tmp_path: Path, adapter: dict[str, object]
) -> None:
    task = make_case(tmp_path / "runs", AdapterCase(adapter=adapter))
    folder = Path(task.request.run_folder) / "output"
    before = deltas(folder)
    scale_as_llama_cpp(folder)
    settings = read_adapter(folder).settings
    assert not (settings.get("use_rslora") or settings.get("alpha_pattern"))
    after = deltas(folder)
    assert all(torch.allclose(after[name], before[name], atol=1e-6) for name in before)


def test_an_adapter_with_one_scale_stays_as_it_is(task: ExportTask) -> None:
    folder = Path(task.request.run_folder) / "output"
    before = (folder / WEIGHTS).read_bytes()
    scale_as_llama_cpp(folder)
    assert (folder / WEIGHTS).read_bytes() == before
