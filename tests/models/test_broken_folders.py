"""A walk over broken copies of a model folder: refused in words, or loaded whole from its files."""

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.job import ModelNotFound, SpecError
from core.resolve import resolve
from tests.builders.model_folders import change_config
from tests.builders.training_runs import TINY_CONFIG, tiny_model

pytestmark = pytest.mark.training
PYTHON_WORDS = re.compile(r"Error\b|Traceback|class '|ignore_mismatched|has no attribute|NoneType")
NUMBERS = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny sound model."""
    from transformers import LlamaConfig

    config = LlamaConfig(**TINY_CONFIG, pad_token_id=0, eos_token_id=2, bos_token_id=None)
    return tiny_model(tmp_path_factory.mktemp("sound") / "model", config)


def break_tensors(folder: Path, draw: Any) -> None:
    """Drop, rename, resize or retype one tensor."""
    import torch
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = draw(st.sampled_from(sorted(tensors)))
    kind = draw(st.sampled_from(["drop", "rename", "resize", "retype"]))
    tensor = tensors.pop(name)
    if kind == "rename":
        tensors[draw(st.sampled_from(["x.", "model.", "base_model."])) + name] = tensor
    elif kind == "resize":
        tensors[name] = tensor[:-1].contiguous()
    elif kind == "retype":
        dtype = draw(
            st.sampled_from([torch.float16, torch.int32, torch.uint8, torch.float8_e4m3fn])
        )
        tensors[name] = tensor.to(dtype)
    save_file(tensors, path, metadata={"format": "pt"})


def break_file(folder: Path, draw: Any) -> None:
    """Cut the weights off, or change one byte of their header."""
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    place = draw(st.integers(0, min(len(content) - 1, 3000)))
    if draw(st.booleans()):
        content = content[:place]
    else:
        content[place] ^= draw(st.integers(1, 255))
    path.write_bytes(bytes(content))


def break_index(folder: Path, draw: Any) -> None:
    """Put an index in place of the one file, with one entry that is wrong."""
    from safetensors import safe_open

    (folder / "model.safetensors").rename(folder / "a.safetensors")
    with safe_open(folder / "a.safetensors", "pt") as file:
        named: dict[str, object] = dict.fromkeys(file.keys(), "a.safetensors")
    wrong = st.sampled_from(["b.safetensors", "../a.safetensors", "weights.bin", 7, None, ""])
    named[draw(st.sampled_from(sorted(named)))] = draw(wrong)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": named}))


def break_number(folder: Path, draw: Any) -> None:
    """Change one number of config.json."""
    change_config(folder, **{draw(st.sampled_from(NUMBERS)): draw(st.integers(-1, 4096))})


def break_value(folder: Path, draw: Any) -> None:
    """Give any key of config.json a value of another kind, or scale its positions in some way."""
    config = json.loads((folder / "config.json").read_text())
    key = draw(st.sampled_from([*config, "rope_scaling", "layer_types", "hidden_activation"]))
    kinds = ["spiral", "yarn", "linear", "llama3", "longrope", "default", 7, None]
    scaling = {"rope_type": draw(st.sampled_from(kinds)), "factor": draw(st.integers(-1, 4))}
    odd: list[Any] = ["64", -1, 0, 0.5, float("nan"), True, [], ["full_attention"], {}, scaling]
    change_config(folder, **{key: draw(st.sampled_from(odd))})


BREAKS = (break_tensors, break_file, break_index, break_number, break_value)


def refusal(folder: Path) -> str:
    """Return why a job over a folder is refused before a run is made; "" if it is not."""
    try:
        resolve({"model": str(folder), "method": "full", "max_length": 8}).require_trainable()
    except (ModelNotFound, SpecError) as error:
        return str(error)
    return ""


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_a_broken_folder_never_trains_on_other_weights(sound: Path, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(shutil.copytree(sound, Path(place) / "model"))
        data.draw(st.sampled_from(BREAKS))(folder, data.draw)
        said = refusal(folder) or failure(folder)
        assert not PYTHON_WORDS.search(said)
        if not said:
            require_loaded_from_files(folder)


def failure(folder: Path) -> str:
    """Return what a training says that loads the folder; "" if it loads."""
    import torch

    from core.training.contract.failures import TrainingError
    from core.training.model.weights import BaseRequest, load_base

    try:
        load_base(BaseRequest(str(folder), "main", torch.float32))
    except TrainingError as error:
        return str(error)
    return ""


def require_loaded_from_files(folder: Path) -> None:
    """Assert that every parameter is the tensor of the file."""
    import torch
    from safetensors.torch import load_file

    from core.training.model.weights import BaseRequest, load_base

    model, absent = load_base(BaseRequest(str(folder), "main", torch.float32))
    stored: dict[str, Any] = {}
    for path in folder.glob("*.safetensors"):
        stored |= load_file(path)
    assert not absent
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, stored[name].float()), name
