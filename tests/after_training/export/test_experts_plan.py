"""Adapters on experts that llama.cpp's converter cannot read: what is said before an export."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from core.after_training.export.plan import plan_export
from core.job import SpecError
from core.runs import Run, read
from tests.builders.chat_runs import finish
from tests.builders.fake_runs import NewRun
from tests.builders.training_runs import change_job

EXPERTS = "base_model.model.model.layers.0.mlp.experts"
BOTH = (EXPERTS, f"{EXPERTS}.base_layer")
APART = "model.layers.0.block_sparse_moe.experts.0.w1.weight"
TOGETHER = "model.layers.0.mlp.experts.gate_up_proj"
UNREAD = "llama.cpp's converter reads an adapter on experts only if"


def problem_of(run: Run, folder: Path, places: tuple[str, ...], stored: str) -> str:
    """Return why an adapter on experts over a base cannot be a GGUF file."""
    matrices = {}
    for place in places:
        matrices[f"{place}.lora_A.weight"] = np.zeros((4, 8), np.float32)
        matrices[f"{place}.lora_B.weight"] = np.zeros((8, 4), np.float32)
    save_file(matrices, run.folder / "output" / "adapter_model.safetensors")
    path = run.folder / "output" / "adapter_config.json"
    names = {"target_modules": [], "target_parameters": ["gate_up_proj", "down_proj"], "r": 1}
    path.write_text(json.dumps(json.loads(path.read_text()) | names))
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save_file({stored: np.zeros((8, 8), np.float32)}, folder / "model.safetensors")
    with pytest.raises(SpecError) as caught:
        plan_export(run, "adapter-gguf")
    return str(caught.value)


@pytest.fixture
def run(new_run: NewRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Return a finished run over another base, on a machine without converters."""
    monkeypatch.setenv("TAILOR_EXPORT_TOOLS", "/nowhere")
    found = finish(new_run(model="demo", dataset="demo"))
    change_job(found.folder, model=str(tmp_path / "base"))
    return read(found.home, found.id)


@pytest.mark.parametrize(
    ("places", "stored"),
    [((EXPERTS,), APART), (BOTH, TOGETHER)],
    ids=["a part of the experts", "experts in one tensor"],
)
def test_an_adapter_that_the_converter_cannot_read_says_what_to_do(
    run: Run, tmp_path: Path, places: tuple[str, ...], stored: str
) -> None:
    said = problem_of(run, tmp_path / "base", places, stored)
    assert UNREAD in said
    assert "choose gguf, which merges it first" in said


def test_an_adapter_on_all_of_each_expert_is_read(run: Run, tmp_path: Path) -> None:
    assert UNREAD not in problem_of(run, tmp_path / "base", BOTH, APART)
