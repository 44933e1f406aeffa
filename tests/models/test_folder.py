"""Model folders as people have them: what is refused before a run is made, and what goes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from core.job import ModelNotFound, SpecError
from core.models import find_model
from core.resolve import resolve
from tests.builders.model_folders import DEMO_MODEL, change_config, copy_of_demo, rewrite
from tests.builders.weight_headers import write_header

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'ab' * 32}\nsize 4989392\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return copy_of_demo(tmp_path / "model")


def said(folder: Path, **fields: object) -> str:
    """Return why a job with this model is refused; "" if it is not."""
    try:
        resolve({"model": str(folder), **fields}).require_trainable()
    except (ModelNotFound, SpecError) as error:
        return str(error)
    return ""


def test_the_demo_itself_is_sound(folder: Path) -> None:
    assert said(folder) == ""


@pytest.mark.parametrize(
    "name", ["model.safetensors", "tokenizer.json", "config.json", "tokenizer_config.json"]
)
def test_a_pointer_of_git_lfs_is_named(folder: Path, name: str) -> None:
    (folder / name).write_text(POINTER)
    assert f"{name} is a Git LFS pointer" in said(folder)


def test_a_folder_of_gguf_files_is_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model-Q4_K_M.gguf").write_bytes(b"GGUF")
    assert "GGUF" in said(folder)


def test_gguf_files_without_a_config_are_named(tmp_path: Path) -> None:
    (tmp_path / "model-Q4_K_M.gguf").write_bytes(b"GGUF")
    assert "GGUF" in said(tmp_path)


def test_a_gguf_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "model-Q4_K_M.gguf"
    file.write_bytes(b"GGUF")
    assert "is a GGUF file, which is for running a model" in said(file)


def test_a_file_of_a_model_names_its_folder(folder: Path) -> None:
    said_of_file = said(folder / "model.safetensors")
    assert f"is a file, not a folder; give {folder}" in said_of_file


def test_an_adapter_given_as_model_names_its_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base"}')
    assert "is an adapter over owner/base; choose owner/base as model" in said(tmp_path)


@pytest.mark.parametrize("base", ["null", "[7]", '"a\\u001b[2J"', "{}"])
def test_an_adapter_whose_base_has_no_plain_name_is_named_alone(tmp_path: Path, base: str) -> None:
    (tmp_path / "adapter_config.json").write_text(f'{{"base_model_name_or_path": {base}}}')
    assert "is an adapter over a model that it does not name; choose its base" in said(tmp_path)


@pytest.mark.parametrize(("method", "chosen"), [("full", "lora"), ("qlora", None)])
def test_an_adapter_given_as_model_brings_its_cure(
    tmp_path: Path, method: str, chosen: str | None
) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base"}')
    with pytest.raises(SpecError) as refused:
        resolve({"model": str(tmp_path), "method": method})
    cure = refused.value.problems[0].cure
    assert cure is not None
    wanted = {"model": "owner/base", "adapter": str(tmp_path)}
    assert cure.change == wanted | ({"method": chosen} if chosen else {})


def test_a_folder_without_weights_can_be_estimated(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert resolve({"model": str(folder)}).estimate().total_bytes > 0


def test_a_folder_without_weights_cannot_be_trained(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "has no weights" in said(folder)


def test_a_link_to_a_file_that_is_gone_is_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(folder / "blob")
    assert "model.safetensors is a link to a file that is gone" in said(folder)


def test_a_key_that_occurs_twice_is_named(folder: Path) -> None:
    text = (folder / "config.json").read_text().replace("{", '{"vocab_size": 5,', 1)
    (folder / "config.json").write_text(text)
    assert "has the key 'vocab_size' twice" in said(folder)


def test_weight_files_that_config_names_itself_are_refused(folder: Path) -> None:
    change_config(folder, transformers_weights="adapter_model.bin")
    assert "transformers_weights" in said(folder)


def test_auto_map_does_no_harm_where_the_class_is_known(folder: Path) -> None:
    change_config(folder, auto_map={"AutoModelForCausalLM": "modeling_llama.Llama"})
    assert said(folder) == ""


def test_auto_map_of_an_unknown_class_is_refused(folder: Path) -> None:
    change_config(folder, model_type="own", auto_map={"AutoModelForCausalLM": "modeling.Own"})
    assert "needs code of its own (auto_map)" in said(folder)


def test_a_type_that_transformers_has_not_is_refused(folder: Path) -> None:
    change_config(folder, model_type="not_there")
    assert "has no language model" in said(folder)


@pytest.mark.parametrize("model_type", ["mistral3", "qwen2_5_vl", "llama4", "not_there"])
def test_a_model_with_vision_is_refused(folder: Path, model_type: str) -> None:
    change_config(folder, model_type=model_type, vision_config={"hidden_size": 8})
    assert "is a model with vision" in said(folder)


@pytest.mark.parametrize("model_type", ["bart", "whisper", "t5"])
def test_a_model_with_an_encoder_is_refused(folder: Path, model_type: str) -> None:
    change_config(folder, model_type=model_type, is_encoder_decoder=True)
    assert "is a model with an encoder" in said(folder)


def test_more_tokens_than_embeddings_are_refused(folder: Path) -> None:
    change_config(folder, vocab_size=2040)
    rewrite(folder, lambda name, tensor: tensor[:2040] if len(tensor) == 2048 else tensor)
    assert "has 2,048 tokens, but the model only 2,040 embeddings" in said(folder)


@pytest.mark.parametrize("form", ['"{}"', "'{}'", " {} ", "{}/"])
def test_quotes_and_blanks_around_a_path_are_dropped(tmp_path: Path, form: str) -> None:
    folder = copy_of_demo(tmp_path / "my model")
    assert find_model(form.format(folder)).location == str(folder)


def test_a_relative_folder_needs_no_dot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy_of_demo(tmp_path / "models" / "plain")
    monkeypatch.chdir(tmp_path)
    assert find_model("models/plain").location == str(tmp_path / "models" / "plain")


def test_a_tokenizer_model_names_the_packages_that_it_needs(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>")
    monkeypatch.setattr("core.models.folder.find_spec", lambda name: None)
    assert "pip install sentencepiece protobuf" in said(folder)


def test_a_tokenizer_model_of_another_kind_is_damaged(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    assert "tokenizer.model" in said(folder)
    assert "is damaged: it describes no tokenizer" in said(folder)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"model": []}', "[" * 100_000, "\ufeff{}"])
def test_a_tokenizer_that_is_damaged_is_refused(folder: Path, content: str) -> None:
    (folder / "tokenizer.json").write_text(content)
    assert "is damaged: it describes no tokenizer" in said(folder)


def test_a_folder_without_a_tokenizer_trains_nothing(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert "has no tokenizer in its folder; copy tokenizer.json" in said(folder)


def test_a_folder_without_a_tokenizer_is_estimated(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert resolve({"model": str(folder)}).estimate().total_bytes > 0


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_config_in_another_encoding_is_refused(folder: Path, name: str, encoding: str) -> None:
    path = folder / name
    path.write_text(path.read_text(), encoding=encoding)
    assert f"{name} is not a readable JSON file in UTF-8" in said(folder)


@pytest.mark.parametrize("value", ["x", [2, "x"], 1.5, True])
def test_an_end_of_answers_that_is_no_token_is_refused(folder: Path, value: object) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    assert "generation_config.json" in said(folder)
    assert "it must be a whole number; repair it, or remove eos_token_id" in said(folder)


# Weight files


def drop_layer(name: str) -> bool:
    return ".layers.2." in name


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a layer is missing": (
        lambda folder: rewrite(folder, keep=lambda name: not drop_layer(name)),
        "9 tensors that config.json asks for are not in its weights: model.layers.2.",
    ),
    "the embedding is missing": (
        lambda folder: rewrite(folder, keep=lambda name: "embed" not in name),
        "1 tensor that config.json asks for is not in its weights: model.embed_tokens.weight",
    ),
    "names have a prefix": (
        lambda folder: rewrite(folder, rename=lambda name: f"_orig_mod.{name}"),
        "are not in its weights",
    ),
    "a layer too many": (
        lambda folder: change_config(folder, num_hidden_layers=2),
        "have no place in config.json: model.layers.2.",
    ),
    "a layer too few": (
        lambda folder: change_config(folder, num_hidden_layers=5),
        "are not in its weights: model.layers.4.",
    ),
    "sizes differ": (
        lambda folder: change_config(folder, num_key_value_heads=4),
        "k_proj.weight is 64 × 128 in the weights and 128 × 128 by config.json",
    ),
    "an unknown tensor": (
        lambda folder: rewrite(folder, rename=lambda name: name.replace("q_proj", "w_q")),
        "q_proj.weight",
    ),
    "the file is empty": (
        lambda folder: (folder / "model.safetensors").write_bytes(b""),
        "model.safetensors is empty",
    ),
    "the file is no safetensors file": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"PK" * 5000),
        "model.safetensors is damaged",
    ),
    "whole numbers without a form": (
        lambda folder: write_header(
            folder / "model.safetensors", {"model.norm.weight": ("I32", (64,))}
        ),
        "model.norm.weight is stored as I32",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_weights_that_are_not_the_models_are_refused(folder: Path, change: str) -> None:
    make, expected = CHANGES[change]
    make(folder)
    assert expected in said(folder)


@pytest.mark.parametrize("part", [3, 7, 100, -1, -1000])
def test_a_file_that_is_cut_off_is_refused(folder: Path, part: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:part])
    assert "model.safetensors" in said(folder)


def shard(folder: Path, names: tuple[str, ...]) -> None:
    """Put the weights into one file and an index that names these files, each with one tensor."""
    index = dict(zip(["model.norm.weight", "model.embed_tokens.weight"], names, strict=False))
    (folder / "model.safetensors").rename(folder / "all.safetensors")
    text = json.dumps({"weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "../all.safetensors", "/tmp/all.safetensors", "a\\b.safetensors"]
)
def test_an_index_names_plain_files_of_the_folder(folder: Path, name: str) -> None:
    shard(folder, ("all.safetensors", name))
    assert "no file *.safetensors of the folder" in said(folder)


def test_an_index_whose_files_are_absent_is_refused(folder: Path) -> None:
    shard(folder, ("all.safetensors", "two.safetensors"))
    assert "1 of 2 weight files are not there: two.safetensors" in said(folder)


def test_an_index_that_names_another_file_is_refused(folder: Path) -> None:
    shard(folder, ("all.safetensors", "two.safetensors"))
    write_header(folder / "two.safetensors", {"other": ("F32", (1,))})
    assert "says that model.embed_tokens.weight is in two.safetensors" in said(folder)


def test_shards_without_an_index_are_named(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    assert "but no model.safetensors.index.json" in said(folder)


def test_one_file_under_an_index_is_sound(folder: Path) -> None:
    shard(folder, ("all.safetensors", "all.safetensors"))
    assert said(folder) == ""


def test_files_of_a_distributed_checkpoint_are_refused(folder: Path) -> None:
    shutil.copy(
        DEMO_MODEL / "model.safetensors", folder / "shard-00000-model-00001-of-00001.safetensors"
    )
    assert "distributed checkpoint" in said(folder)


def test_a_head_may_be_absent_where_a_score_head_takes_its_place(folder: Path) -> None:
    change_config(folder, tie_word_embeddings=False)
    assert said(folder, stage="reward", dataset=str(DEMO_MODEL.parent / "preference.jsonl")) == ""


def test_a_head_may_not_be_absent_otherwise(folder: Path) -> None:
    change_config(folder, tie_word_embeddings=False)
    assert "lm_head.weight" in said(folder)


# Rotary embeddings

LLAMA_3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONG = {"rope_type": "longrope", "short_factor": [1.0] * 16, "long_factor": [2.0] * 16}


@pytest.mark.parametrize(
    ("scaling", "positions"),
    [
        ({"type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64}, 512),
        ({"rope_type": "yarn", "factor": 8.0}, 512),
        ({"rope_type": "linear", "factor": 4.0}, 256),
        ({"rope_type": "dynamic", "factor": 2.0}, 128),
        ({**LLAMA_3, "factor": 8.0, "original_max_position_embeddings": 8}, 64),
        ({**LONG, "original_max_position_embeddings": 16}, 64),
        ({"rope_type": "default"}, 64),
    ],
)
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_scaled_rotary_embeddings_reach_their_full_length(
    folder: Path, key: str, scaling: dict[str, object], positions: int
) -> None:
    other = {"rope_parameters": None, "rope_scaling": None}
    change_config(folder, max_position_embeddings=64, **{**other, key: scaling})
    shape = find_model(str(folder)).shape
    assert shape
    assert shape.max_position_embeddings == positions
