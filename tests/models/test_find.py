"""Find models in presets, folders and on the Hub; refuse hostile ones before they load."""

import json
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from core.job import ModelNotFound
from core.models import find as source
from core.models import find_model, models
from core.models.folder import MAX_CONFIG_BYTES

CONFIG: dict[str, object] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
    "max_position_embeddings": 512,
    "hidden_act": "silu",
}


NO_TENSORS = (2).to_bytes(8, "little") + b"{}"
"""Content of a safetensors file."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder that holds a model whose weight file has no tensors."""
    path = tmp_path / "my model"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    (path / "model.safetensors").write_bytes(NO_TENSORS)
    return path


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep the Hub's client offline, with an empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    source.hub_config_path.cache_clear()


def hub_answers(
    monkeypatch: pytest.MonkeyPatch, answer: Path | Exception
) -> list[tuple[str, str, str]]:
    """Let the Hub serve a file or fail. Return a list that fills with the requests."""
    asked: list[tuple[str, str, str]] = []

    def download(repo_id: str, filename: str, revision: str) -> str:
        asked.append((repo_id, filename, revision))
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(source, "hub_answers", lambda _moment: True)
    return asked


def changed(folder: Path, **changes: object) -> str:
    """Change config.json of a folder and return its path."""
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    return str(folder)


def test_the_demo_is_a_folder_of_the_presets() -> None:
    source = find_model("demo")
    assert source.is_local
    assert Path(source.location, "config.json").is_file()
    assert source.shape
    assert source.shape.num_parameters == source.num_parameters


@pytest.mark.parametrize(
    "called", ["llama 3.1 8b", "Llama-3.1-8B", "meta-llama/llama-3.1-8b", "LLAMA 3.1-8B"]
)
def test_a_preset_is_found_by_what_people_call_it(called: str) -> None:
    assert find_model(called).reference == find_model(called).location == "meta-llama/Llama-3.1-8B"


def test_no_two_presets_are_called_the_same() -> None:
    for preset in models().values():
        assert {find_model(called).location for called in (preset.id, preset.name)} == {preset.id}


def test_another_owners_model_is_not_taken_for_a_preset() -> None:
    for reference in ("gemma/2b", "some-one/Llama-3.1-8B"):
        with pytest.raises(ModelNotFound, match="not downloaded"):
            find_model(reference)


@pytest.mark.parametrize(
    ("called", "meant"), [("mistral 7b", "Mistral-7B-v0.1"), ("lama 3.1 8b", "Llama-3.1-8B")]
)
def test_a_name_that_is_almost_one_of_a_preset_is_answered_with_it(called: str, meant: str) -> None:
    with pytest.raises(ModelNotFound, match=f"did you mean .*{meant}"):
        find_model(called)


def test_a_preset_is_found_without_asking_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = hub_answers(monkeypatch, AssertionError("the Hub was asked"))
    source = find_model("Qwen/Qwen3-0.6B")
    assert (source.location, source.title, source.is_local) == (
        "Qwen/Qwen3-0.6B",
        "Qwen3 0.6B",
        False,
    )
    assert source.shape is models()["Qwen/Qwen3-0.6B"].shape
    assert asked == []


def test_a_folder_is_found_by_its_absolute_path(folder: Path) -> None:
    source = find_model(str(folder))
    assert (source.location, source.title, source.is_local) == (str(folder), "my model", True)
    assert source.shape
    assert source.num_parameters == source.shape.num_parameters


@pytest.mark.parametrize(
    "reference", ["~/my model", "./my model", "./my model/", "../{here}/my model"]
)
def test_a_folder_is_found_by_what_looks_like_a_path(
    folder: Path, monkeypatch: pytest.MonkeyPatch, reference: str
) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.chdir(folder.parent)
    assert find_model(reference.format(here=folder.parent.name)).location == str(folder)


def test_an_unknown_architecture_is_found_without_a_shape(folder: Path) -> None:
    source = find_model(changed(folder, model_type="mamba"))
    assert (source.shape, source.num_parameters) == (None, None)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="there is no folder") as caught:
        find_model(str(tmp_path / "none"))
    assert caught.value.problems[0].fix


@pytest.mark.parametrize("reference", ["/" + "x" * 5000, "./a\0b", "~nobody-of-that-name/x"])
def test_an_impossible_path_is_refused(reference: str) -> None:
    with pytest.raises(ModelNotFound, match="there is no folder"):
        find_model(reference)


def test_a_folder_without_config_json_is_refused(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(ModelNotFound, match=r"has no config\.json"):
        find_model(str(folder))


def test_pickle_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelNotFound, match="weights must be safetensors"):
        find_model(str(folder))


def test_pickle_files_beside_safetensors_do_not_matter(folder: Path) -> None:
    (folder / "training_args.bin").touch()
    assert find_model(str(folder)).shape


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize(
    "change", [{"auto_map": {"AutoConfig": "x.Y"}}, {"a": [{"trust_remote_code": True}]}], ids=str
)
def test_remote_code_is_refused_by_file_and_key(
    folder: Path, name: str, change: dict[str, object]
) -> None:
    (folder / name).write_text(json.dumps({**CONFIG, **change}))
    with pytest.raises(
        ModelNotFound, match=rf"{name} .*code of its own \((auto_map|trust_remote_code)\)"
    ):
        find_model(str(folder))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "llama\nimport os"),
        ("model_type", "x" * 65),
        ("model_type", ["llama", 3]),
        ("architectures", ["Llama; rm"]),
        ("architectures", "Lläma"),
        ("torch_dtype", "float16'"),
        ("_attn_implementation", "owner/kernel"),
        ("quantization_config", {"quant_method": "a b"}),
    ],
)
def test_an_unsafe_name_is_refused_by_its_key(folder: Path, key: str, value: object) -> None:
    with pytest.raises(ModelNotFound, match=f"unsafe value under ({key}|quant_method)"):
        find_model(changed(folder, **{key: value}))


def test_a_bad_value_is_refused_by_its_key(folder: Path) -> None:
    with pytest.raises(ModelNotFound, match="hidden_size is -1"):
        find_model(changed(folder, hidden_size=-1))


@pytest.mark.parametrize(
    "content",
    [b"{", b"\xff\xfe{}", b"[]", b"[" * 100_000, b" " * MAX_CONFIG_BYTES + b"{}"],
    ids=["cut off", "not UTF-8", "a list", "too deep", "too large"],
)
def test_a_config_that_is_not_a_json_object_is_refused(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ModelNotFound, match=r"^model: config\.json "):
        find_model(str(folder))


@pytest.mark.parametrize(
    "reference", ["", "llama", "owner/name/more", "owner/", "/", "a b/c", "owner/na me", "-x/y"]
)
def test_what_is_no_preset_folder_or_hub_id_is_refused(reference: str) -> None:
    with pytest.raises(ModelNotFound):
        find_model(reference)


def test_a_hub_model_is_read_at_its_revision(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = hub_answers(monkeypatch, folder / "config.json")
    source = find_model("owner/some-model", revision="v2")
    assert asked == [("owner/some-model", "config.json", "v2")]
    assert (source.location, source.is_local) == ("owner/some-model", False)
    assert source.shape


def test_a_hub_model_that_asks_for_remote_code_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = changed(folder, model_type="own", auto_map={"AutoConfig": "x.Y"})
    hub_answers(monkeypatch, Path(own) / "config.json")
    with pytest.raises(ModelNotFound, match=r"owner/model .*auto_map"):
        find_model("owner/model")


def test_offline_a_hub_model_that_is_not_downloaded_is_named() -> None:
    with pytest.raises(ModelNotFound, match="owner/some-model is not downloaded"):
        find_model("owner/some-model")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (errors.GatedRepoError, r"gated; accept its licence .* `hf auth login`"),
        (errors.RepositoryNotFoundError, "is not on the Hub"),
        (errors.RevisionNotFoundError, "has no revision 'main'"),
        (errors.RemoteEntryNotFoundError, r"has no config\.json"),
        (errors.HfHubHTTPError, "cannot be read from the Hub"),
        (errors.LocalEntryNotFoundError, "is not downloaded"),
        (errors.HFValidationError, "is not a Hub id"),
        (ConnectionError, "cannot be read from the Hub"),
    ],
)
def test_a_failure_of_the_hub_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, kind: type[Exception], said: str
) -> None:
    failure = kind.__new__(kind)  # their constructors want a response
    hub_answers(monkeypatch, failure)
    with pytest.raises(ModelNotFound, match=f"owner/model .*{said}"):
        find_model("owner/model")


def test_models_are_found_without_torch() -> None:
    find = "from core.models import find_model; find_model('demo')"
    code = f"import sys; {find}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_hub_client_does_not_load_torch() -> None:
    code = "import sys, huggingface_hub.file_download; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ["owner/" + "x" * 300, "owner/a--b", "owner/.."])
def test_a_name_that_the_hub_forbids_is_a_sentence(name: str) -> None:
    with pytest.raises(ModelNotFound, match="is not a Hub id"):
        find_model(name)
